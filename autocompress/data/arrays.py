"""In-memory data, batched as tensors without worker processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.task import InputSpec


@dataclass(frozen=True)
class TensorBatches:
    """Batches of arrays held in memory, normalised when drawn: `(raw · scale − mean) / std`.

    Raw data stay NumPy arrays, which worker processes share without a copy. The order is drawn from
    PyTorch's global generator, so `torch.manual_seed` fixes it.

    Args:
        x: raw inputs, `(N, C, H, W)` or `(N, features)`.
        targets: `(N,)`.
        spec: how raw inputs are normalised.
        batch_size: of all batches but the last.
        shuffle: draw a new order each time, and leave out a last batch of one row, another one each time:
            batch norm cannot train on it.
    """

    x: NDArray[Any]
    targets: NDArray[Any]
    spec: InputSpec
    batch_size: int = 128
    shuffle: bool = False
    _shift: NDArray[np.float32] = field(init=False, repr=False)
    _std: NDArray[np.float32] = field(init=False, repr=False)
    _moved: dict[torch.device, DeviceBatches] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        if len(self.x) != len(self.targets):
            raise TaskError(
                f"x and y must be equally long but have {len(self.x)} and {len(self.targets)} rows."
            )
        if len(self.x) == 0:
            raise TaskError("x must have at least one row but is empty.")
        trailing = (1,) * (self.x.ndim - 2)
        for name, values in (("_shift", self.spec.mean), ("_std", self.spec.std)):
            array = np.asarray(values, dtype=np.float32).reshape(1, -1, *trailing)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return math.ceil(self._end() / self.batch_size)

    def _end(self) -> int:
        alone = self.shuffle and len(self.x) > 1 and len(self.x) % self.batch_size == 1
        return len(self.x) - alone

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.x)
        order = torch.randperm(count).numpy() if self.shuffle else np.arange(count)
        for start in range(0, self._end(), self.batch_size):
            index = order[start : start + self.batch_size]
            raw = self.x[index].astype(np.float32)
            normalised = (raw * np.float32(self.spec.scale) - self._shift) / self._std
            yield torch.from_numpy(normalised), torch.from_numpy(self.targets[index])

    def subset(self, index: NDArray[np.int64], **changes: Any) -> TensorBatches:
        """Batches of some rows, with other fields replaced."""
        return replace(self, x=self.x[index], targets=self.targets[index], **changes)

    def on_device(self, device: torch.device) -> TensorBatches | DeviceBatches:
        """The same batches drawn on a device, to which the data are copied once.

        They come in another order than on the CPU, from the device's own generator.
        """
        if device.type == "cpu":
            return self
        if device not in self._moved:
            self._moved[device] = DeviceBatches.of(self, device)
        return self._moved[device]

    def __getstate__(self) -> dict[str, Any]:
        # What lies on a device of this process is no part of the data.
        return {**self.__dict__, "_moved": {}}


@dataclass(frozen=True, eq=False)
class DeviceBatches:
    """Batches of tensors that lie on a device: no step copies anything to it or waits for it.

    Args:
        x: raw inputs; images as `(N, H, W, C)`, so that batches of them are channels-last.
        targets: `(N,)`.
        scale: of the normalisation `(raw · scale − shift) / std`.
        shift: of it, `(1, C, 1, 1)` or `(1, features)`.
        std: of it, of the same shape.
        batch_size: of all batches but the last.
        end: rows that are drawn in a pass.
        shuffle: draw a new order each time.
    """

    x: Tensor
    targets: Tensor
    scale: float
    shift: Tensor
    std: Tensor
    batch_size: int
    end: int
    shuffle: bool

    @staticmethod
    def of(batches: TensorBatches, device: torch.device) -> DeviceBatches:
        """Copy the raw data of batches to a device, in their own precision."""
        raw = batches.x.transpose(0, 2, 3, 1) if batches.x.ndim == 4 else batches.x

        def moved(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return DeviceBatches(
            x=moved(raw),
            targets=moved(batches.targets),
            scale=float(np.float32(batches.spec.scale)),
            shift=moved(batches._shift),
            std=moved(batches._std),
            batch_size=batches.batch_size,
            end=batches._end(),
            shuffle=batches.shuffle,
        )

    def __len__(self) -> int:
        return math.ceil(self.end / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), device=self.x.device) if self.shuffle else None
        for start in range(0, self.end, self.batch_size):
            stop = min(start + self.batch_size, self.end)
            if order is None:
                raw, targets = self.x[start:stop], self.targets[start:stop]
            else:
                index = order[start:stop]
                raw, targets = self.x.index_select(0, index), self.targets.index_select(0, index)
            images = raw.permute(0, 3, 1, 2) if raw.dim() == 4 else raw
            yield (images.float() * self.scale - self.shift) / self.std, targets


def channels_first(x: NDArray[Any]) -> NDArray[Any]:
    """Raw arrays (N, H, W[, C]) as (N, C, H, W); (N, features) unchanged.

    Raises:
        TaskError: another number of dimensions.
    """
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4:
        already = x.shape[1] <= 4 < x.shape[3]
        return x if already else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    raise TaskError(f"x must have 2 to 4 dimensions but has shape {x.shape}.")


def measured_spec(x: NDArray[Any], scale: float | None = None) -> InputSpec:
    """Scale of integer images to [0, 1], mean and standard deviation per channel or feature."""
    if scale is None:
        scale = 1 / 255 if x.dtype == np.uint8 else 1.0
    axes = tuple(d for d in range(x.ndim) if d != 1)
    # A sample of the rows is enough, and keeps large integer arrays from being held as floats.
    sample = x[:: max(1, len(x) // 10000)].astype(np.float64) * scale
    mean, std = sample.mean(axes), sample.std(axes)
    # What is constant in training carries no scale to divide by.
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)
    shape = tuple(int(size) for size in x.shape[1:])
    return InputSpec(shape, "float32", scale, _short(mean), _short(std))


def _short(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Five significant digits are enough, and people can read them in a manifest."""
    return tuple(float(f"{value:.5g}") for value in values)
