"""Detection: lists of boxes of variable length, a training step of its own, average precision.

The model returns raw scores and sides of boxes. What turns these into detections, with non-maximum
suppression, is `outputs`: it is no part of the file that is deployed.
"""

import os
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchvision.ops import box_iou, nms

import autocompress as ac

SIDE, CELLS = 32, 4
STRIDE = SIDE // CELLS


def scene(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image of one or two bright squares, and their boxes."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.2 * torch.randn(1, SIDE, SIDE, generator=generator)
    boxes = []
    for _ in range(int(torch.randint(1, 3, (), generator=generator))):
        size = int(torch.randint(6, 12, (), generator=generator))
        left, top = torch.randint(0, SIDE - size, (2,), generator=generator).tolist()
        image[:, top : top + size, left : left + size] += 1.0
        boxes.append([left, top, left + size, top + size])
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.zeros(len(boxes), dtype=torch.long),
    }


def collate(rows: list[Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    images, targets = zip(*rows, strict=True)
    return torch.stack(images), list(targets)


def loader(first: int, count: int) -> DataLoader[Any]:
    return DataLoader([scene(first + i) for i in range(count)], batch_size=32, collate_fn=collate)


CENTRES = (torch.arange(CELLS) + 0.5) * STRIDE
GRID = torch.stack(torch.meshgrid(CENTRES, CENTRES, indexing="xy"), -1).reshape(-1, 2)


class Detector(nn.Module):
    """In each cell of a grid: is the centre of a box here, and how far are its sides."""

    def __init__(self) -> None:
        super().__init__()
        widths = pairwise([1, 16, 32, 32])
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in widths
            )
        )
        self.head = nn.Conv2d(32, 5, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        raw = self.head(self.body(images)).flatten(2).movedim(1, 2)
        return {"scores": raw[..., 0], "sides": nn.functional.softplus(raw[..., 1:])}


def step(model: nn.Module, batch: Any) -> Tensor:
    """The loss of a batch: cells that hold a centre are to say so, and where the sides are."""
    images, targets = batch
    seen = model(images)
    wanted, sides = torch.zeros_like(seen["scores"]), torch.zeros_like(seen["sides"])
    for row, target in enumerate(targets):
        boxes = target["boxes"].to(images.device)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        column, line = (centres / STRIDE).long().clamp(max=CELLS - 1).T
        cells = line * CELLS + column
        grid = GRID.to(images.device)[cells]
        wanted[row, cells] = 1.0
        sides[row, cells] = torch.cat([grid - boxes[:, :2], boxes[:, 2:] - grid], 1) / STRIDE
    centred = wanted > 0
    scored = nn.functional.binary_cross_entropy_with_logits(seen["scores"], wanted)
    return scored + nn.functional.l1_loss(seen["sides"][centred], sides[centred])


def detections(seen: Any) -> list[dict[str, Tensor]]:
    """Boxes of each image, those that overlap a better one left out."""
    images = []
    for scores, sides in zip(seen["scores"].sigmoid(), seen["sides"] * STRIDE, strict=True):
        boxes = torch.cat([GRID - sides[:, :2], GRID + sides[:, 2:]], 1)
        kept = nms(boxes, scores, 0.5)
        kept = kept[scores[kept] > 0.05]
        images.append({"boxes": boxes[kept], "scores": scores[kept], "labels": torch.zeros_like(kept)})
    return images


class AveragePrecision(Metric):
    """At an overlap of one half; `torchmetrics.detection.MeanAveragePrecision` needs pycocotools."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", default=[], dist_reduce_fx="cat")
        self.add_state("boxes", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> None:
        for seen, target in zip(outputs, targets, strict=True):
            self.boxes += len(target["boxes"])
            free = torch.ones(len(target["boxes"]), dtype=torch.bool)
            for score, overlaps in zip(seen["scores"], box_iou(seen["boxes"], target["boxes"]), strict=True):
                overlap, which = (overlaps * free).max(0)
                free[which] &= overlap < 0.5
                self.hits.append(torch.stack([score, (overlap >= 0.5).float()]))

    def compute(self) -> Tensor:
        scores, hits = torch.stack(self.hits).T
        hits = hits[scores.argsort(descending=True)].cumsum(0)
        precision = hits / torch.arange(1, len(hits) + 1)
        best = precision.flip(0).cummax(0).values.flip(0)
        return torch.trapezoid(best, hits / self.boxes)


task = ac.Task(
    model=Detector,
    train=loader(0, 512),
    val=loader(10_000, 64),
    test=loader(20_000, 64),
    step=step,
    outputs=detections,
    metrics={"map": AveragePrecision()},
    recipe=ac.Recipe(epochs=8, lr=5e-3),
    name="detection",
)
result = ac.search(
    task,
    objectives=["map", "bytes"],
    constraints=["map>=ref-0.1"],
    trials=int(os.environ.get("EXAMPLE_TRIALS", "12")),
)
for point in result.front:
    precision = point.test_metrics["map"]
    print(f"trial {point.trial}: average precision {precision:.3f}, {point.metrics['bytes']} bytes")
