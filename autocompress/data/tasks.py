"""From a task's name to a `Task`: built-in data with a built-in model, or the user's own function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autocompress.data.arrays import TensorBatches, channels_first, measured_spec
from autocompress.data.imagefolder import MEAN, STD, image_folder, image_spec
from autocompress.data.sources import (
    TORCHVISION,
    Arrays,
    data_root,
    digits,
    npz,
    torchvision_arrays,
)
from autocompress.errors import TaskError, one_line
from autocompress.models import model_factory
from autocompress.plugins import load_attribute, module_exists
from autocompress.task import InputSpec, Recipe, Task
from autocompress.task.checks import check_forward, make_model
from autocompress.task.pretrained import read_weights


@dataclass(frozen=True)
class _BuiltIn:
    """Default model, recipe, batch size and names of the classes of a data set."""

    model: str
    recipe: Recipe
    batch_size: int = 128
    classes: tuple[str, ...] | None = None


_DIGITS = tuple("0123456789")
_CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

BUILT_IN = {
    "digits": _BuiltIn("small_cnn", Recipe(epochs=12, reference_epochs=30, lr=3e-3), 64, _DIGITS),
    "mnist": _BuiltIn("small_cnn", Recipe(epochs=3, reference_epochs=6, lr=2e-3), classes=_DIGITS),
    "fashion_mnist": _BuiltIn("small_cnn", Recipe(epochs=3, reference_epochs=6, lr=2e-3), classes=_CLOTHES),
    "cifar10": _BuiltIn(
        "resnet20", Recipe(epochs=3, reference_epochs=20, lr=2e-3, augment="crop-flip"), classes=_CIFAR10
    ),
    "npz": _BuiltIn("mlp", Recipe(epochs=10, reference_epochs=20)),
    "imagefolder": _BuiltIn("resnet18", Recipe(epochs=10, reference_epochs=20), 64),
    "random": _BuiltIn("mlp", Recipe(epochs=1), 8),
}
# Names that take a location after a colon.
_LOCATED = ("npz", "imagefolder", "random")


def load_task(
    name: str,
    *,
    model: str | None = None,
    root: str | Path | None = None,
    weights: str | Path | None = None,
    image_size: int = 224,
) -> Task:
    """The task of a name: built-in, `npz:FILE`, `imagefolder:DIR`, `random:SHAPE` or `module:function`.

    Args:
        name: as on the command line.
        model: model name or `module:function`; None means the data set's default.
        root: folder of data sets.
        weights: file of trained weights of the reference: what `Task(weights=...)` may be.
        image_size: side to which an image folder's images are resized and cropped.

    Raises:
        TaskError: the task, its data, its model or the weights cannot be used.
    """
    kind, _, location = name.partition(":")
    if name in BUILT_IN and name not in _LOCATED:
        task = _array_task(name, _arrays(name, root), model, name)
    elif kind == "npz" and location:
        task = _array_task("npz", npz(location), model, Path(location).stem)
    elif kind == "imagefolder" and location:
        task = _folder_task(location, model, image_size)
    elif kind == "random" and location:
        task = _array_task("random", _random_arrays(location, model), model, "random")
    elif ":" in name and location:
        task = _own_task(name, model)
    else:
        raise _unknown(name)
    return task if weights is None else replace(task, weights=read_weights(weights))


def check_name(name: str) -> None:
    """See that a task's name may be one, without loading any data or running any code of it.

    Args:
        name: as `load_task` takes it.

    Raises:
        TaskError: the name is not known, or there is no such file, folder or module.
    """
    kind, _, location = name.partition(":")
    if name in BUILT_IN and name not in _LOCATED:
        return
    if not location:
        raise _unknown(name)
    path = Path(location)
    if kind == "random":
        _random_sizes(location)
    elif kind == "imagefolder":
        if not path.is_dir():
            raise TaskError(f"imagefolder must be an existing folder but '{location}' is not.")
    elif not (path.is_file() if kind == "npz" else module_exists(name.rpartition(":")[0])):
        raise TaskError(f"task must be in an existing file or module but {name!r} is not.")


def _unknown(name: str) -> TaskError:
    known = [n for n in BUILT_IN if n not in _LOCATED]
    return TaskError(
        f"task must be one of {', '.join(known)}, npz:FILE, imagefolder:DIR, random:SHAPE or "
        f"module:function but got {name!r}."
    )


def _arrays(name: str, root: str | Path | None) -> Arrays:
    return digits() if name == "digits" else torchvision_arrays(name, data_root(root))


def _random_arrays(shape: str, model: str | None) -> Arrays:
    """Random inputs of a shape like 3x224x224, to inspect architectures with.

    Of ten classes; of one where the user's own model has as many as it likes.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, *_random_sizes(shape)), dtype=np.float32)
    y = np.arange(20, dtype=np.int64) % (1 if model is not None and ":" in model else 10)
    return x, y, x, y


def _random_sizes(shape: str) -> list[int]:
    sizes = shape.split("x")
    if not all(size.isdecimal() and size.isascii() and int(size) > 0 for size in sizes):
        raise TaskError(f"random:SHAPE must read like random:3x224x224 or random:20 but got {shape!r}.")
    return [int(size) for size in sizes]


def _spec(name: str, x: np.ndarray) -> InputSpec:
    if name == "cifar10":
        # The constants of the published CIFAR-10 checkpoints, so that their weights can be used.
        return InputSpec(tuple(x.shape[1:]), "float32", 1 / 255, MEAN, STD)
    return measured_spec(x, scale=1 / 16 if name == "digits" else None)


def _array_task(kind: str, arrays: Arrays, model: str | None, name: str) -> Task:
    defaults = BUILT_IN[kind]
    x_train, y_train, x_test, y_test = arrays
    if kind != "random":  # whose shape is as given
        x_train, x_test = channels_first(x_train), channels_first(x_test)
    spec = _spec(kind, x_train)
    classes = int(y_train.max()) + 1
    model_name = model or ("small_cnn" if kind == "npz" and x_train.ndim == 4 else defaults.model)
    return Task(
        model=model_factory(model_name, spec.shape, classes),
        train=TensorBatches(x_train, y_train, spec, defaults.batch_size, shuffle=True),
        test=TensorBatches(x_test, y_test, spec, 500),
        recipe=defaults.recipe,
        name=name,
        model_name=model_name,
        input=spec,
        classes=defaults.classes,
    )


def _folder_task(folder: str, model: str | None, size: int) -> Task:
    defaults = BUILT_IN["imagefolder"]
    train, val, test, classes = image_folder(folder, size, defaults.batch_size)
    model_name = model or defaults.model
    return Task(
        model=model_factory(model_name, (3, size, size), len(classes)),
        train=train,
        val=val,
        test=test,
        recipe=defaults.recipe,
        name=Path(folder).name,
        model_name=model_name,
        input=image_spec(size),
        classes=classes,
    )


def _own_task(name: str, model: str | None) -> Task:
    make = load_attribute(name)
    try:
        task = make()
    except Exception as error:
        raise TaskError(f"task {name!r} failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(task, Task):
        raise TaskError(f"task {name!r} must return a Task but returned {type(task).__name__}.")
    changes: dict[str, object] = {}
    if task.name == Task.name:
        changes["name"] = name.rpartition(":")[2]
    if model is not None:
        classes = _outputs(task)
        factory = model_factory(model, tuple(task.input_spec().shape), classes)
        changes |= {"model": factory, "model_name": model}
    return replace(task, **changes)  # type: ignore[arg-type]


def _outputs(task: Task) -> int:
    return int(check_forward(task, make_model(task)).shape[-1])


__all__ = ["BUILT_IN", "TORCHVISION", "check_name", "load_task"]
