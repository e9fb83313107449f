"""What cannot be exported is said in one line, with the place in the model's code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import TraceError
from autocompress.graph import analyse
from autocompress.graph.exporting import export


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class OnData(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if x.sum() > 0:  # here
            x = x * 2
        return self.head(x)


class OnBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x.shape[0] == 2 else 1)


class RowByRow(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([Net.forward(self, row[None]) for row in x])


class NumberOfRows(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(int(x.shape[0]), 4)


class ThroughNumpy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.from_numpy(self.features(x).detach().numpy()))  # here


class OfAGenerator(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(x + torch.randn(8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            OnData(),
            r"depends on data at .*test_exporting.py:\d+ in forward: `if x.sum\(\) > 0:  # here`: write",
        ),
        (OnBatch(), r"fixes a size that must stay free \(.*batch.*\): use x.shape\[0\] without int\(\)"),
        (RowByRow(), r"fixes a size that must stay free \(.*batch.*\): use x.shape\[0\] without int\(\)"),
        (NumberOfRows(), r"fixes a size that must stay free \(.*batch.*\): use x.shape\[0\] without int\(\)"),
        (ThroughNumpy(), r"numpy.* at .*test_exporting.py:\d+ in forward: `.*  # here`\.$"),
        (OfAGenerator(), r"tensors alone but its forward uses an object \(Generator\)"),
    ],
)
def test_what_cannot_be_traced_is_said_with_its_place(
    model: nn.Module, message: str, images: Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TraceError, match=message) as raised:
        analyse(model, images)
    assert "\n" not in str(raised.value)
    # PyTorch prints the graph so far.
    assert capfd.readouterr() == ("", "")


class Caching(Net):
    """Makes a constant at its first call, as rotary embeddings do."""

    scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        if self.scale is None:
            self.scale = torch.linspace(1, 2, x.shape[1])
        return self.head(x * self.scale)


def test_what_a_model_makes_at_its_first_call_is_not_made_of_the_tracers_tensors(images: Tensor) -> None:
    model = Caching().eval()
    program = export(model, images)
    with torch.no_grad():
        assert torch.allclose(program.module()(images), model(images), atol=1e-6)
    assert type(model.scale) is Tensor


class OfSizesThatDependOnData(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(x) + x[x > 0].sum()


def test_sizes_that_depend_on_data_are_no_fault(images: Tensor) -> None:
    assert "conv" in analyse(OfSizesThatDependOnData(), images).frozen
