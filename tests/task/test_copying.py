"""What is in the way of a copy is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.errors import TaskError
from autocompress.task.copying import copied, held_tensors


def holding(**attributes: object) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    vars(model[1]).update(attributes)
    return model


COMPUTED = torch.ones(2, requires_grad=True) * 2


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"kept": COMPUTED},
            "but keeps '1.kept', which was computed: let it be a local variable, or returned",
        ),
        ({"kept": {"a": [COMPUTED]}}, r"but keeps '1.kept\['a'\]\[0\]', which was computed"),
        ({"rows": (row for row in ())}, r"but '1.rows' is not \(cannot pickle 'generator' object\): keep it"),
    ],
)
def test_models_that_cannot_be_copied_are_refused_by_name(
    attributes: dict[str, object], message: str
) -> None:
    with pytest.raises(TaskError, match=rf"the model must be copyable \(copy.deepcopy\) {message}"):
        copied(holding(**attributes))


def test_tensors_are_found_in_what_modules_hold_besides_parameters_and_buffers() -> None:
    layer = nn.Linear(3, 1)
    held = held_tensors(holding(a=torch.ones(1), b=[{"c": torch.ones(1)}, 3], layers=[layer]))
    assert held.keys() == {"1.a", "1.b[0]['c']", "1.layers[0].weight", "1.layers[0].bias"}
    assert held["1.layers[0].weight"] is layer.weight
