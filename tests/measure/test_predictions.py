"""What metrics see of a split: tensors, lists of a row each, and containers of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure import measure_split
from autocompress.measure.predictions import joined, predict, row_count, selected

IMAGES = torch.arange(24.0).reshape(6, 4)


def boxes(rows: Tensor) -> list[dict[str, Tensor]]:
    """As many boxes in a row as its number says."""
    return [{"boxes": row.new_ones(1 + int(row[0]) % 3, 4)} for row in rows]


def detector(rows: Tensor) -> dict[str, Tensor]:
    return {"scores": rows.double(), "raw": 2 * rows}


def detection(metrics: Any) -> ac.Task:
    batches = [(IMAGES[:4], boxes(IMAGES[:4])), (IMAGES[4:], boxes(IMAGES[4:]))]
    return ac.Task(
        nn.Identity,
        train=batches,
        val=batches,
        outputs=lambda out: boxes(out.raw / 2),
        metrics=metrics,
    )


def counted(outputs: Any, targets: Any) -> float:
    return sum(len(row["boxes"]) for row in outputs) / sum(len(row["boxes"]) for row in targets)


class Boxes(MeanMetric):
    """A metric object that is updated with lists of dictionaries, as detection's are."""

    def update(self, outputs: Any, targets: Any) -> None:
        for seen, wanted in zip(outputs, targets, strict=True):
            super().update(float(len(seen["boxes"]) == len(wanted["boxes"])))


def test_lists_of_a_row_each_are_resampled_as_rows_are() -> None:
    task = detection({"count": counted, "equal": Boxes()})
    scores = measure_split(detector, task.val, task)
    assert scores.values == {"count": 1.0, "equal": 1.0}
    assert scores.rows == 6
    assert len(scores.replicates["count"]) == 100


def test_outputs_of_several_batches_are_joined() -> None:
    task = detection(None)
    outputs, targets = predict(detector, task.val, task)
    assert len(outputs) == len(targets) == 6
    columns = joined(
        [{"a": IMAGES[:2], "b": (IMAGES[:2], [1, 2])}, {"a": IMAGES[2:3], "b": (IMAGES[2:3], [3])}]
    )
    assert torch.equal(columns["a"], IMAGES[:3])
    assert torch.equal(columns["b"][0], IMAGES[:3])
    assert columns["b"][1] == [1, 2, 3]


def test_floats_are_float32_and_labels_stay() -> None:
    task = ac.Task(nn.Identity, [(IMAGES, IMAGES)], outputs=lambda out: (out.scores, out.raw.long()))
    (scores, labels), _ = predict(detector, task.train, task)
    assert scores.dtype == torch.float32
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (IMAGES, 6),
        ([1, 2], 2),
        ((IMAGES, IMAGES), 6),
        ({"a": IMAGES, "b": [1]}, None),
        (torch.tensor(1.0), None),
        (3, None),
    ],
)
def test_rows_are_counted_where_all_parts_agree(values: Any, count: int | None) -> None:
    assert row_count(values) == count


def test_rows_are_selected_from_every_part() -> None:
    part = selected({"a": IMAGES, "b": (list("abcdef"),)}, torch.tensor([2, 2, 0]))
    assert torch.equal(part["a"], IMAGES[[2, 2, 0]])
    assert part["b"][0] == ["c", "c", "a"]


def test_an_outputs_function_that_fails_is_named() -> None:
    task = ac.Task(nn.Identity, [(IMAGES, IMAGES)], outputs=lambda out: out.boxes)
    with pytest.raises(
        TaskError, match="outputs must accept what the model returned, a dict, but failed: boxes"
    ):
        predict(detector, task.train, task)


def test_what_cannot_be_joined_is_refused() -> None:
    task = ac.Task(nn.Identity, [(IMAGES, IMAGES)], outputs=lambda out: 3)
    with pytest.raises(TaskError, match="must be tensors, or lists of one entry a row"):
        predict(detector, task.train, task)


def test_sizes_that_a_program_does_not_take_are_said_with_the_remedy() -> None:
    def program(inputs: Tensor) -> Tensor:
        assert inputs.shape[1] == 4, "Guard failed"
        return inputs

    task = ac.Task(nn.Identity, [(IMAGES, IMAGES)])
    with pytest.raises(TaskError, match=r"some have \(6, 5\) \(say by dynamic= which vary\): Guard failed"):
        predict(program, [(IMAGES, IMAGES), (torch.zeros(6, 5), IMAGES)], task)
