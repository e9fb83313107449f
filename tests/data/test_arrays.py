"""In-memory batches: normalisation, order, layout."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from autocompress.data.arrays import DeviceBatches, TensorBatches, channels_first, measured_spec
from autocompress.errors import TaskError
from autocompress.task import InputSpec
from tests.conftest import image_batches


def test_batches_are_raw_times_scale_minus_mean_over_std() -> None:
    batches = image_batches(shuffle=False)
    inputs, targets = next(iter(batches))
    expected = (batches.x[:32].astype(np.float64) / 255 - 0.5) / 0.3
    assert np.allclose(inputs.numpy(), expected, atol=1e-6)
    assert inputs.dtype == torch.float32
    assert np.array_equal(targets.numpy(), batches.targets[:32])


def test_mean_and_std_are_per_channel() -> None:
    x = np.zeros((4, 2, 3, 3), dtype=np.uint8)
    spec = InputSpec((2, 3, 3), "float32", 1.0, (1.0, 2.0), (1.0, 4.0))
    inputs, _ = next(iter(TensorBatches(x, np.zeros(4, dtype=np.int64), spec)))
    assert inputs[0, :, 0, 0].tolist() == [-1.0, -0.5]


def test_every_row_comes_once_in_an_order_that_the_global_seed_fixes() -> None:
    batches = image_batches(count=50)
    orders = []
    for _ in range(2):
        torch.manual_seed(7)
        orders.append(torch.cat([x.flatten(1).sum(1) for x, _ in batches]))
    assert torch.equal(*orders)
    again = torch.cat([x.flatten(1).sum(1) for x, _ in batches])
    assert not torch.equal(again, orders[0])
    assert torch.allclose(again.sort().values, orders[0].sort().values)
    assert len(batches) == 2


def test_batches_pickle() -> None:
    batches = image_batches()
    assert np.array_equal(pickle.loads(pickle.dumps(batches)).x, batches.x)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 8, 8), (5, 1, 8, 8)),
        ((5, 8, 9, 3), (5, 3, 8, 9)),
        ((5, 3, 8, 9), (5, 3, 8, 9)),
        ((5, 7), (5, 7)),
    ],
)
def test_raw_arrays_become_channels_first(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert channels_first(np.zeros(shape)).shape == expected


def test_other_shapes_and_lengths_are_refused() -> None:
    with pytest.raises(TaskError, match="2 to 4 dimensions"):
        channels_first(np.zeros(3))
    with pytest.raises(TaskError, match="equally long but have 3 and 4"):
        TensorBatches(np.zeros((3, 2)), np.zeros(4), InputSpec((2,)))


def test_measured_spec_is_that_of_the_data() -> None:
    x = np.random.default_rng(0).normal(3, 2, (5000, 4))
    spec = measured_spec(x)
    assert np.allclose(spec.mean, x.mean(0), atol=1e-3)
    assert np.allclose(spec.std, x.std(0), atol=1e-3)
    assert spec.shape == (4,)


def test_constant_features_are_left_at_their_scale_and_small_ones_keep_theirs() -> None:
    x = np.stack([np.full(1000, 3.0), np.random.default_rng(0).normal(0, 1e-4, 1000)], 1)
    spec = measured_spec(x)
    assert spec.std[0] == 1.0
    assert spec.std[1] == pytest.approx(x[:, 1].std(), rel=1e-4)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_on_a_device_are_those_of_the_cpu(shuffle: bool) -> None:
    batches = image_batches(count=65, shuffle=shuffle)
    there = DeviceBatches.of(batches, torch.device("cpu"))
    assert len(there) == len(batches)
    torch.manual_seed(3)
    wanted = list(batches)
    torch.manual_seed(3)
    for (x, y), (own_x, own_y) in zip(there, wanted, strict=True):
        assert torch.equal(x, own_x)
        assert torch.equal(y, own_y)
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_what_lies_on_a_device_is_not_pickled() -> None:
    batches = image_batches()
    assert batches.on_device(torch.device("meta")) is batches.on_device(torch.device("meta"))
    assert pickle.loads(pickle.dumps(batches))._moved == {}
    assert batches.on_device(torch.device("cpu")) is batches
