"""Raw arrays of the built-in data sets: train and test images and labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from numpy.typing import NDArray

from autocompress.errors import TaskError, one_line

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}


def digits() -> Arrays:
    """scikit-learn's 1797 bundled 8×8 digits; a fixed, stratified fifth is the test split."""
    # It takes a second to import, and most data sets need nothing of it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    split = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    x_train, x_test, y_train, y_test = split
    return x_train, y_train, x_test, y_test


def data_root(given: str | Path | None) -> Path | None:
    """The folder of data sets: as given, else `$AUTOCOMPRESS_DATA`, else None.

    Raises:
        TaskError: it is not an existing folder.
    """
    origin = "--data-root" if given is not None else "$AUTOCOMPRESS_DATA"
    value = given if given is not None else os.environ.get("AUTOCOMPRESS_DATA")
    if not value:
        return None
    if not Path(value).is_dir():
        raise TaskError(f"{origin} must be an existing folder but got '{value}'.")
    return Path(value)


def torchvision_arrays(name: str, root: Path | None) -> Arrays:
    """A data set from `root/name.npz` or through torchvision, which downloads it where it may.

    Raises:
        TaskError: it is neither there nor can it be downloaded.
    """
    if root is not None and (root / f"{name}.npz").is_file():
        return npz(root / f"{name}.npz")
    folder = root or Path.home() / ".cache" / "autocompress"
    dataset = getattr(torchvision.datasets, TORCHVISION[name])
    try:
        train, test = (dataset(folder, train=split, download=False) for split in (True, False))
    except RuntimeError:
        try:
            train, test = (dataset(folder, train=split, download=True) for split in (True, False))
        except Exception as error:
            raise TaskError(
                f"{name} must be in the data folder or downloadable but is not in '{folder}' and the "
                f"download failed: {one_line(error)} (name its folder with --data-root)."
            ) from error
    return (
        np.asarray(train.data),
        np.asarray(train.targets, dtype=np.int64),
        np.asarray(test.data),
        np.asarray(test.targets, dtype=np.int64),
    )


def npz(path: str | Path) -> Arrays:
    """`x_train`, `y_train`, `x_test`, `y_test` of an .npz file.

    Raises:
        TaskError: the file or one of its arrays is missing.
    """
    if not Path(path).is_file():
        raise TaskError(f"npz file must exist but '{path}' does not.")
    try:
        archive = np.load(path)
    except Exception as error:  # of a damaged file NumPy raises any error
        raise TaskError(f"'{path}' must be an .npz file but: {one_line(error)}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise TaskError(f"'{path}' must be an .npz file but holds a single array.")
    names = ("x_train", "y_train", "x_test", "y_test")
    with archive:
        missing = [name for name in names if name not in archive]
        if missing:
            raise TaskError(
                f"'{path}' must hold x_train, y_train, x_test, y_test but lacks {', '.join(missing)}."
            )
        try:
            arrays = [archive[name] for name in names]
        except Exception as error:  # of a damaged array too
            raise TaskError(f"'{path}' must hold plain arrays but: {one_line(error)}") from error
    for name, array in zip(names, arrays, strict=True):
        if not array.size or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise TaskError(f"{name} of '{path}' must be finite numbers, at least one, but is not.")
    return arrays[0], _labels(arrays[1], path), arrays[2], _labels(arrays[3], path)


def _labels(y: NDArray[Any], path: str | Path) -> NDArray[np.int64]:
    y = y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise TaskError(
            f"y in '{path}' must be integer class labels of shape (N,) but is {y.dtype} {y.shape}."
        )
    return y.astype(np.int64)
