"""Multi-label classification of audio by a 1-d network: which of several tones are in a recording."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MultilabelAveragePrecision

import autocompress as ac

TONES = torch.tensor([3.0, 5.0, 8.0, 13.0])  # periods in a recording


def recordings(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    present = torch.randint(0, 2, (count, len(TONES)), generator=generator)
    phases = 6.28 * torch.rand(count, len(TONES), 1, generator=generator)
    waves = torch.sin(6.28 * TONES[:, None] * torch.linspace(0, 1, 128) + phases)
    noise = torch.randn(count, 128, generator=generator)
    return TensorDataset(((waves * present[..., None]).sum(1) + noise)[:, None], present.float())


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 32, 9, stride=2, padding=4), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Conv1d(32, 32, 9, stride=2, padding=4), nn.BatchNorm1d(32), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(32, len(TONES)),
    )  # fmt: skip


class AveragePrecision(MultilabelAveragePrecision):
    """Takes labels as the loss does, which are floats."""

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        super().update(outputs, targets.int())


task = ac.Task(
    model=make_model,
    train=DataLoader(recordings(512, 0), batch_size=64, shuffle=True),
    val=DataLoader(recordings(128, 1), batch_size=64),
    test=DataLoader(recordings(128, 2), batch_size=64),
    loss=nn.BCEWithLogitsLoss(),
    metrics={"map": AveragePrecision(num_labels=len(TONES))},
    recipe=ac.Recipe(epochs=6, lr=3e-3),
    name="tones",
)
result = ac.search(
    task,
    objectives=["map", "macs"],
    constraints=["map>=ref-0.05"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    precision = point.test_metrics["map"]
    print(f"trial {point.trial}: average precision {precision:.3f}, {point.metrics['macs']} MACs")
