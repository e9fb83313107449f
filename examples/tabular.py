"""Regression on a table of numbers and categories, which the model takes as two inputs; judged by R²."""

import os

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import R2Score

import autocompress as ac

table, progress = load_diabetes(return_X_y=True)
table = torch.tensor(table, dtype=torch.float32) / table.std()
progress = torch.tensor((progress - progress.mean()) / progress.std(), dtype=torch.float32)[:, None]
sex = (table[:, 1] > 0).long()
numbers = torch.cat([table[:, :1], table[:, 2:]], 1)
parts = random_split(TensorDataset(numbers, sex, progress), [262, 90, 90], torch.Generator().manual_seed(0))


class Table(nn.Module):
    """Numbers and a learned vector for each category, mixed by three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.category = nn.Embedding(2, 4)
        self.layers = nn.Sequential(
            nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, numbers: Tensor, category: Tensor) -> Tensor:
        return self.layers(torch.cat([numbers, self.category(category)], 1))


train, val, test = (DataLoader(part, batch_size=32, shuffle=i == 0) for i, part in enumerate(parts))
task = ac.Task(
    model=Table,
    train=train,
    val=val,
    test=test,
    loss=nn.MSELoss(),
    metrics={"r2": R2Score()},
    recipe=ac.Recipe(epochs=12, lr=1e-3),
    name="table",
)
result = ac.search(
    task,
    objectives=["r2", "params"],
    constraints=["r2>=ref-0.1"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    print(f"trial {point.trial}: R² {point.test_metrics['r2']:.3f}, {point.metrics['params']} parameters")
