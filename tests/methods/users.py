"""What a user brings, of every kind: small models with a layer that is frozen, and data of their shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

import autocompress as ac
from autocompress.graph import CutPairs, analyse, within
from autocompress.methods.alcn import Alcn
from autocompress.methods.alds import Alds
from autocompress.methods.autoplastic import Autoplastic
from autocompress.methods.base import Method
from autocompress.methods.depth import Depth
from autocompress.methods.lc import Lc
from autocompress.methods.qat import Qat
from autocompress.task.limits import settle
from tests.conftest import Residual
from tests.graph.zoo import Conv1d, Mlp, Shared, UNet, encoder


class Grouped(nn.Module):
    """Blocks of grouped and depthwise convolutions with shortcuts, then a concat of both depths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.grouped, self.grouped_norm = nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False)
        self.narrow, self.narrow_norm = nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.norm(self.stem(x)))
        x = first + torch.relu(self.grouped_norm(self.grouped(first)))
        x = x + self.narrow_norm(self.narrow(torch.relu(self.depthwise(F.silu(self.wide(x))))))
        return self.head(self.dropout(torch.cat([first, x], 1).mean((2, 3))))


class Deeper(nn.Module):
    """A small model with one more hidden layer before its head, which a layer that is frozen leaves free."""

    def __init__(self, body: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.body, self.wide, self.head = body, nn.Linear(width, hidden), nn.Linear(hidden, 5)
        self.body.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.wide(self.body(x))))


def vit() -> nn.Module:
    return VisionTransformer(8, 2, 2, 2, 16, 24, dropout=0.1, num_classes=5)


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], [2, 2], stochastic_depth_prob=0.5, num_classes=5)


class Recurrent(nn.Module):
    """Rows of an image and the brightness of each as a word, through a GRU of both directions, then weights
    of the model itself, and words scored by what they are embedded as."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 24)
        self.enter, self.hidden = nn.Linear(24, 64), nn.Linear(64, 16)
        self.rnn = nn.GRU(16, 12, bidirectional=True, batch_first=True)
        self.matrix, self.table = nn.Parameter(torch.randn(24, 24) / 5), nn.Parameter(torch.randn(1, 8, 24))
        self.score, self.head = nn.Linear(24, 12, bias=False), nn.Linear(12, 5)
        self.score.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(2)
        words = (rows.mean(2) * 8 + 6).long().clamp(0, 11)
        x = self.hidden(torch.relu(self.enter(rows + self.embed(words))))
        return self.head(self.score(F.linear(self.rnn(x)[0] + self.table, self.matrix).mean(1)))


@dataclass(frozen=True)
class User:
    """A user's model.

    Args:
        make: makes a new one.
        frozen: name of the layer that is not to be trained.
        random: whether it computes something else each time while it trains.
        pixels: whether there is a target for each pixel, not for each image.
    """

    make: Callable[[], nn.Module]
    frozen: str
    random: bool = False
    pixels: bool = False

    def model(self) -> nn.Module:
        model = self.make()
        model.get_submodule(self.frozen).requires_grad_(False)
        return model

    def task(self) -> ac.Task:
        generator = torch.Generator().manual_seed(0)
        batches = []
        for _ in range(2):
            targets = torch.randint(2 if self.pixels else 5, (16, 8, 8)[: 3 if self.pixels else 1])
            batches.append((torch.randn(16, 3, 8, 8, generator=generator), targets))
        return ac.Task(model=self.model, train=batches, recipe=ac.Recipe(epochs=2))


USERS = {
    "residual": User(Residual, "branch"),
    "grouped": User(Grouped, "stem", random=True),
    "vit": User(vit, "encoder.layers.encoder_layer_1.mlp.0", random=True),
    "swin": User(swin, "features.3.0.mlp.0", random=True),
    "encoder": User(encoder, "body.layers.1.linear1", random=True),
    "unet": User(UNet, "join", pixels=True),
    "mlp": User(lambda: Deeper(Mlp(), 24, 16), "body.middle"),
    "conv1d": User(lambda: Deeper(Conv1d(), 8, 16), "body.down"),
    "tied": User(lambda: Deeper(Shared(), 12, 20), "body.first"),
    "recurrent": User(Recurrent, "head"),
}


def probe() -> Tensor:
    """Inputs that models are compared on, `(4, 3, 8, 8)`."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def configured(method: str, model: nn.Module, example: Tensor) -> Method:
    """A method with settings that fit small models."""
    if method == "depth":
        cuts = CutPairs(within(analyse(model, example), settle(model)))
        pairs = [(a, b) for b in range(len(cuts.cuts)) for a in range(b) if not cuts.why_illegal(a, b)]
        return Depth(cuts=pairs[:1] or ((0, 1),), calibration=32)
    settings: dict[str, dict[str, Any]] = {
        "autoplastic": {"c_init": 0.6},
        "alds": {"keep": 0.8, "calibration": 32},
        "lc": {"steps": 4},
    }
    made: dict[str, type[Method]] = {
        "alcn": Alcn,
        "alds": Alds,
        "autoplastic": Autoplastic,
        "lc": Lc,
        "qat": Qat,
    }
    return made[method](**settings.get(method, {}))
