"""A compressor of one's own: network slimming (Liu et al., arXiv 1708.06519), on any model with batch norms.

An L1 penalty on the scales of batch norms pushes those of channels that matter little to zero; at the end
the channels with the smallest scales are cut. A method is a `Config` and a class with `start`, which begins
a session; the training loop calls the session. For `autocompress search --methods slimming` the two classes
would be a package with an entry point in the group `autocompress.methods`, and a search space in
`autocompress.search_spaces`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.graph import analyse
from autocompress.methods.base import Finished, Method, Session, Stage
from autocompress.surgery import keep_units


@dataclass(frozen=True)
class SlimmingConfig:
    keep: float = 0.5  # share of each group's channels that stays
    strength: float = 1e-3  # λ of the penalty


class Slimming(Method):
    Config: ClassVar[type[SlimmingConfig]] = SlimmingConfig
    stage = Stage.CHANNELS

    def start(self, model: nn.Module, task: ac.Task) -> "SlimmingSession":
        return SlimmingSession(self.config, model, task.example())


class SlimmingSession(Session):
    def __init__(self, config: SlimmingConfig, model: nn.Module, example: Tensor) -> None:
        self.config, self.model, self.example = config, model, example
        # Which channels can only go together, wherever the model carries them.
        self.analysis = analyse(model, example)
        self.norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def penalty(self) -> Tensor:
        return self.config.strength * torch.stack([norm.weight.abs().sum() for norm in self.norms]).sum()

    def finish(self) -> Finished:
        modules = dict(self.model.named_modules())
        keep = {}
        for group in self.analysis.groups:
            scales = [
                modules[layer].weight.abs()
                for layer in group.layers
                if isinstance(modules[layer], nn.BatchNorm2d) and len(modules[layer].weight) == group.width
            ]
            if scales:
                count = max(group.least, round(self.config.keep * group.width))
                keep[group.name] = torch.stack(scales).mean(0).topk(count).indices.sort().values.tolist()
        cut = keep_units(self.model.eval(), self.analysis, keep, self.example)
        return Finished(cut.model, cut.edits, cut.masked)


def make_model() -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    return nn.Sequential(block(1, 16), block(16, 32), block(32, 32), head)


torch.manual_seed(0)
labels = torch.randint(0, 4, (512,))
images = torch.randn(512, 1, 16, 16) + labels[:, None, None, None]
loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
task = ac.Task(model=make_model, train=loader, recipe=ac.Recipe(epochs=3, lr=1e-2), name="slimming")

done = ac.compress(make_model(), task, Slimming(keep=0.25))
print([module.out_channels for module in done.model.modules() if isinstance(module, nn.Conv2d)])
print("compact and trained model differ by", done.difference)
done.export("slim.pt2")
