"""Models by name fit the data's channels and classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.errors import TaskError
from autocompress.models import BUILT_IN, model_factory


@pytest.mark.parametrize("name", [*BUILT_IN, "resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_named_models_take_the_datas_channels_and_classes(name: str, channels: int) -> None:
    model = model_factory(name, (channels, 32, 32), 7)().eval()
    with torch.no_grad():
        assert model(torch.randn(2, channels, 32, 32)).shape == (2, 7)


def test_resnet20_has_the_published_number_of_parameters_and_keys() -> None:
    model = BUILT_IN["resnet20"]((3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == 269_722
    assert {"conv1.weight", "layer3.2.bn2.running_var", "linear.bias"} <= set(model.state_dict())


def test_lenet300_is_the_published_network() -> None:
    model = BUILT_IN["lenet300"]((1, 28, 28), 10)
    assert {n: tuple(p.shape) for n, p in model.named_parameters() if p.dim() == 2} == {
        "fc1.weight": (300, 784),
        "fc2.weight": (100, 300),
        "fc3.weight": (10, 100),
    }
    assert any(isinstance(m, nn.Tanh) for m in model.modules())


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TaskError, match=r"must return an nn\.Module but returned str"):
        model_factory("os:getcwd", (3, 8, 8), 2)
    with pytest.raises(TaskError, match=r"takes images \(C, H, W\) but the inputs are \(5,\)"):
        model_factory("small_cnn", (5,), 2)
