"""Augmentation against a loop over images in NumPy."""

from __future__ import annotations

import numpy as np
import torch

from autocompress.augment import augmented, random_crop, random_flip


def test_crops_are_shifts_of_the_padded_image() -> None:
    images = torch.randn(20, 3, 8, 6)
    torch.manual_seed(0)
    found = random_crop(images, 2).numpy()
    torch.manual_seed(0)
    offsets = torch.randint(0, 5, (2, 20, 1)).numpy()[:, :, 0]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for i in range(20):
        row, column = offsets[0, i], offsets[1, i]
        assert np.array_equal(found[i], padded[i, :, row : row + 8, column : column + 6])
    assert len({tuple(o) for o in offsets.T}) > 5


def test_flips_mirror_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = torch.randn(200, 1, 2, 5)
    found = random_flip(images)
    mirrored = [torch.equal(f, i.flip(-1)) for f, i in zip(found, images, strict=True)]
    kept = [torch.equal(f, i) for f, i in zip(found, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 60 < sum(mirrored) < 140


def test_inputs_that_are_no_images_stay_as_they_are() -> None:
    rows = torch.randn(4, 10)
    assert augmented(rows, "crop-flip") is rows
    images = torch.randn(4, 1, 8, 8)
    assert augmented(images, "none") is images
    assert augmented(images, "crop-flip").shape == images.shape
