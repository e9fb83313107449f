"""Augmentation against a loop over images in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autocompress.errors import TaskError
from autocompress.training.augment import augmented, mixed, random_crop, random_erase, random_flip


def test_crops_are_shifts_of_the_padded_image() -> None:
    images = torch.randn(20, 3, 8, 6)
    torch.manual_seed(0)
    cropped = random_crop(images, 2).numpy()
    torch.manual_seed(0)
    offsets = torch.randint(0, 5, (2, 20, 1)).numpy()[:, :, 0]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for i in range(20):
        row, column = offsets[0, i], offsets[1, i]
        assert np.array_equal(cropped[i], padded[i, :, row : row + 8, column : column + 6])
    assert len({tuple(o) for o in offsets.T}) > 5


def test_flips_mirror_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 1, 2, 5)
    flipped = random_flip(images)
    mirrored = [torch.equal(f, i.flip(-1)) for f, i in zip(flipped, images, strict=True)]
    kept = [torch.equal(f, i) for f, i in zip(flipped, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 60 < sum(mirrored) < 140


def test_erasing_blanks_one_rectangle_of_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 2, 8, 6) + 1
    erased = random_erase(images)
    blank = (erased == 0).numpy()
    assert torch.equal(erased[erased != 0], images[erased != 0])
    assert 60 < blank.any((1, 2, 3)).sum() < 140
    for image in blank[blank.any((1, 2, 3))]:
        rows, columns = np.nonzero(image.any((0, 2)))[0], np.nonzero(image.any((0, 1)))[0]
        assert image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) <= 4
        assert len(columns) <= 3


def test_mixed_inputs_are_convex_combinations_with_one_share() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(6, 3)
    mixed_inputs, order, share = mixed(inputs, 0.2)
    expected = share * inputs.numpy() + (1 - share) * inputs.numpy()[order.numpy()]
    assert 0 <= share <= 1
    assert sorted(order.tolist()) == list(range(6))
    assert np.allclose(mixed_inputs.numpy(), expected, atol=1e-6)
    with pytest.raises(TaskError, match="mixup must be 0 where inputs are not floating-point"):
        mixed(torch.ones(2, 2, dtype=torch.long), 0.2)


def test_inputs_that_are_no_images_stay_as_they_are() -> None:
    rows = torch.randn(4, 10)
    assert augmented(rows, "crop-flip") is rows
    images = torch.randn(4, 1, 8, 8)
    assert augmented(images, "none") is images
    assert augmented(images, "crop-flip").shape == images.shape
