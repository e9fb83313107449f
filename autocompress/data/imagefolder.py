"""Folders of images, one sub-folder per class, through torchvision's `ImageFolder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from autocompress.errors import TaskError, one_line
from autocompress.task import Batches, InputSpec

# Mean and standard deviation of ImageNet, which torchvision's models are trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_spec(size: int) -> InputSpec:
    """Colour images of `size` pixels, normalised as torchvision's models expect."""
    return InputSpec((3, size, size), "float32", 1 / 255, MEAN, STD)


def image_folder(
    folder: str | Path, size: int, batch_size: int = 64
) -> tuple[Batches, Batches | None, Batches, list[str]]:
    """Train, validation (None to carve it), test and the classes' names of a folder of images.

    `DIR/train` and `DIR/test` (or `DIR/val` alone, which is then the test split) are used where
    they are there; otherwise `DIR` holds the classes and a fixed fifth is the test split. Batches have
    `batch_size` rows, or a few less in training where the last batch would have one.

    Raises:
        TaskError: the folder is missing or holds no images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise TaskError(f"imagefolder must be an existing folder but got '{folder}'.")
    evaluation = _evaluation(size)

    def loader(data: ImageFolder | Subset[object], shuffle: bool = False) -> Batches:
        # Batch norm cannot train on a last batch of one row.
        size = batch_size
        while shuffle and size > 1 and len(data) % size == 1:
            size -= 1
        return DataLoader(data, batch_size=size, shuffle=shuffle)

    try:
        if not (root / "train").is_dir():
            images = ImageFolder(str(root), evaluation, loader=_image)
            order = np.random.default_rng(0).permutation(len(images)).tolist()
            cut = max(1, len(order) // 5)
            train, test = Subset(images, order[cut:]), Subset(images, order[:cut])
            return loader(train, True), None, loader(test), images.classes
        held = "test" if (root / "test").is_dir() else "val"
        train_set = ImageFolder(str(root / "train"), evaluation, loader=_image)
        test_set = ImageFolder(str(root / held), evaluation, loader=_image)
        val = None
        sets = [test_set]
        if held == "test" and (root / "val").is_dir():
            sets.append(ImageFolder(str(root / "val"), evaluation, loader=_image))
            val = loader(sets[-1])
        for other in sets:
            if other.class_to_idx != train_set.class_to_idx:
                raise TaskError(
                    f"imagefolder '{folder}' must hold the same classes in every split but train has "
                    f"{train_set.classes} and '{other.root}' has {other.classes}."
                )
        return loader(train_set, True), val, loader(test_set), train_set.classes
    except FileNotFoundError as error:
        raise TaskError(
            f"imagefolder '{folder}' must hold one folder of images per class but: {one_line(error)}"
        ) from error


def _image(path: str) -> Any:
    """An image of a file.

    Raises:
        TaskError: it is damaged.
    """
    try:
        return default_loader(path)
    except Exception as error:  # of damaged files Pillow's many readers raise any error
        raise TaskError(f"image '{path}' must be readable but: {one_line(error)}") from error


def _evaluation(size: int) -> transforms.Compose:
    """The middle of an image as a normalised tensor, `(3, size, size)`."""
    return transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
