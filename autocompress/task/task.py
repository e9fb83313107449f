"""What a user brings: `Task` and `Recipe`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from autocompress.errors import SettingsError, TaskError
from autocompress.task.batches import split_batch
from autocompress.task.inputs import (
    Inputs,
    Varying,
    answer,
    arguments,
    concatenated,
    repeated_rows,
    returned,
    rows,
    take,
    tensors,
    to_json,
)
from autocompress.task.limits import Limits, settle
from autocompress.task.losses import is_cross_entropy
from autocompress.task.opening import (
    Batches,
    MovableBatches,
    Split,
    Splits,
    batches_of,
    described_split,
    length_of,
)
from autocompress.task.pretrained import Weights

if TYPE_CHECKING:
    # It takes seconds to import, and who uses it has imported it.
    from torchmetrics import Metric

# What a split yields; `Task.inputs_of` and `Task.targets_of` say what of it is what.
Batch = Any
MetricFn = Callable[[Any, Any], float]
LossFn = Callable[[Tensor, Tensor], Tensor]
OptimizerFn = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
StepFn = Callable[[nn.Module, Any], Any]
# Beside PyTorch's own schedulers, any with a `step()`.
SchedulerFn = Callable[..., Any]


def on_device(split: Split, device: torch.device) -> Batches:
    """Batches drawn on a device where they can be; others as they are, to be copied one by one."""
    batches = batches_of(split)
    return batches.on_device(device) if isinstance(batches, MovableBatches) else batches


AUGMENTATIONS = ("none", "crop-flip", "crop-flip-erase")


@dataclass(frozen=True)
class Recipe:
    """How a model of this task is trained; every method trains by it.

    Args:
        epochs: epochs of one trial, in-training compression and fine-tuning together.
        steps_per_epoch: batches of an epoch, whatever `accumulate` is; None is as many as `train` says it
            has, so a stream without a length needs it. A pass over `train` goes on from epoch to epoch of a
            training, and another begins at its end.
        reference_epochs: epochs the reference is trained for; None means `epochs`.
        lr: peak learning rate; a trial may scale it.
        optimizer: "adamw" or "sgd" (Nesterov).
        weight_decay: decay of the model's weights.
        momentum: of "sgd".
        warmup: share of the steps over which the rate rises linearly; cosine to 0 follows.
        grad_clip: greatest norm of the loss's gradient, infinity to leave it alone. None is 1 for trials
            with "sgd" on cross entropy, which else diverge where a model has just been compressed; and
            infinity for the reference, for "adamw", whose steps its rate bounds, and for losses of other
            scales.
        channels_last: train models with 2-d convolutions in that memory format.
        augment: "none", "crop-flip": images shifted by up to an eighth and mirrored at random, or
            "crop-flip-erase": a rectangle of every second one is blanked out besides.
        label_smoothing: share of a target that is spread over all classes; of cross entropy alone.
        mixup: α of the Beta distribution that inputs are mixed by, two by two; 0 mixes none.
        mixed_precision: bfloat16 where PyTorch's autocast deems it safe; for GPUs, and CPUs with AMX or
            AVX512-BF16: others take several times as long as in single precision.
        compile: run models through `torch.compile` while they train, except where a method's gates change
            them in each step. Compiling takes up to a minute for each model, so for long trainings.
        accumulate: batches of one optimiser step, which goes by the mean of their losses; the last step of an
            epoch takes what is left.
        ema: decay of an exponential moving average of the weights, such as 0.999, which is what the reference
            and the fine-tuning that ends a trial end with; what trains with a method is not averaged. It is
            less over the first steps. 0 averages nothing.
    """

    epochs: int = 10
    steps_per_epoch: int | None = None
    reference_epochs: int | None = None
    lr: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-2
    momentum: float = 0.9
    warmup: float = 0.1
    grad_clip: float | None = None
    channels_last: bool = True
    augment: Literal["none", "crop-flip", "crop-flip-erase"] = "none"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    mixed_precision: bool = False
    compile: bool = False
    accumulate: int = 1
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingsError(f"epochs must be at least 1 but got {self.epochs}.")
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise SettingsError(f"steps_per_epoch must be at least 1 but got {self.steps_per_epoch}.")
        if self.reference_epochs is not None and self.reference_epochs < 1:
            raise SettingsError(f"reference_epochs must be at least 1 but got {self.reference_epochs}.")
        if not self.lr > 0:
            raise SettingsError(f"lr must be greater than 0 but got {self.lr}.")
        if self.optimizer not in ("adamw", "sgd"):
            raise SettingsError(f"optimizer must be 'adamw' or 'sgd' but got {self.optimizer!r}.")
        if not self.weight_decay >= 0:
            raise SettingsError(f"weight_decay must be at least 0 but got {self.weight_decay}.")
        if not 0 <= self.momentum < 1:
            raise SettingsError(f"momentum must be in [0, 1) but got {self.momentum}.")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise SettingsError(f"grad_clip must be greater than 0 but got {self.grad_clip}.")
        if not 0 <= self.warmup < 1:
            raise SettingsError(f"warmup must be in [0, 1) but got {self.warmup}.")
        if self.augment not in AUGMENTATIONS:
            raise SettingsError(
                f"augment must be one of {', '.join(AUGMENTATIONS)} but got {self.augment!r}."
            )
        if not 0 <= self.label_smoothing < 1:
            raise SettingsError(f"label_smoothing must be in [0, 1) but got {self.label_smoothing}.")
        if not self.mixup >= 0:
            raise SettingsError(f"mixup must be at least 0 but got {self.mixup}.")
        if self.accumulate < 1:
            raise SettingsError(f"accumulate must be at least 1 but got {self.accumulate}.")
        if not 0 <= self.ema < 1:
            raise SettingsError(f"ema must be in [0, 1) but got {self.ema}.")


def _names(classes: Any) -> tuple[str, ...]:
    """The classes' names as they are kept; raises TaskError."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TaskError(f"classes must be a list of names, one for each output, but got {classes!r}.")
    return tuple(classes)


@dataclass(frozen=True)
class InputSpec:
    """What the program takes: `(raw · scale − mean) / std`, of this shape without the batch."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def to_json(self) -> dict[str, Any]:
        """The manifest's `input` entry; None stands for the batch dimension."""
        return {
            "shape": [None, *self.shape],
            "dtype": self.dtype,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
        }


SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Task:
    """A model, its data and how it is trained and judged.

    A batch is a pair of inputs and targets; a tuple of several inputs with the targets last; or a mapping
    whose targets are called `labels`, `label`, `targets` or `target`. Inputs are a tensor, a tuple of
    arguments that the model is called with, or a mapping of keyword arguments. `inputs` and `targets` say
    otherwise.

    A model's answer is what it returns where that is a tensor, else its `logits`, else the first tensor; it
    is what the loss and the metrics see. The loss sees what `outputs` makes of several tensors, where that is
    a tensor of floats and none is called `logits`.

    Args:
        model: makes a new, untrained model at each call.
        train: batches, as a `DataLoader` yields them, or a function that makes them; see `opened`. A stream
            without a length needs `Recipe(steps_per_epoch=...)`.
        val: batches that candidates are compared on; None carves them from `train`, or takes half of `test`
            where there are `weights`, which may have been trained on any row of `train`. A stream without a
            length needs an end, as `FirstBatches` gives it.
        test: batches that the final front alone is reported on, with an end as well; None reports none.
        loss: `loss(answer, targets)`, a scalar tensor; None is cross entropy. Parameters of a module are
            trained along with the model, by each trial in a copy that begins where its parent's ended. Beside
            a `step` it does not train, and says of what kind answers are.
        metrics: by name, each a function `fn(outputs, targets) -> float` of a whole split, or a
            `torchmetrics.Metric`, which is updated batch by batch with `(outputs, targets)`; a copy that is
            reset, for each evaluation. Outputs are float32, `(N, ...)`, all on the CPU. None is top-1
            accuracy over the targets that the loss does not ignore. For its standard error a metric is
            evaluated on 100 resamples of the rows besides; an object that keeps its rows, as
            `AUROC(thresholds=None)`, keeps those too.
        recipe: how it is trained.
        weights: trained weights of the reference: a state dict, a whole checkpoint that holds one, a module,
            or the path of a file (.pt, .pth, .ckpt, .safetensors, .npz), of which no code is run. Prefixes of
            wrappers go. None trains them once per run.
        name: names the run folder.
        input: how raw inputs become the model's; None reads shape and dtype off the first batch.
        step: `fn(model, batch) -> loss`, a training step of one's own: it calls `model(...)` with what it
            makes of a batch, as `train` yields it but on the device of training, and returns a scalar tensor,
            or a mapping with one as "loss". Some methods make a graph of the model, which takes the same
            arguments and has its layers, but none of its class's methods; where the step fails on that, they
            are not tried. Parameters of a module are trained along, as those of a loss.
        optimizer: `fn(param_groups)`, a `torch.optim.Optimizer` in place of the recipe's. The groups are as
            `torch.optim` takes them, with the names of their parameters and, where a method's own parameters
            must not decay, with `weight_decay`. The rates are the optimiser's own; trials and methods scale
            them.
        scheduler: `fn(optimizer, total_steps)`, a learning-rate scheduler in place of the recipe's warm-up
            and cosine, whose `step()` is called after each optimiser step; a parameter `steps_per_epoch` is
            told that. All trainings of a trial have one schedule between them: each makes it anew for what it
            trains, and goes on where it was.
        teacher: what trials that distil learn from in place of the best model so far: a module that takes
            what the model takes and returns what it returns, or a function that makes one.
        inputs: `fn(batch)`, what the model is called with.
        targets: `fn(batch)`, what loss and metrics compare with.
        outputs: `fn(what the model returned)`, what metrics see in place of the model's answer; what has
            several tensors is a tuple, or a mapping whose names are attributes as well.
        prepare: `fn(model) -> model`, what becomes of a trained model before it is compressed, measured and
            stored, such as the fusing of its branches; it goes by the model's structure, not by its numbers.
            Reference and trials are what it gives. Norms of weights are folded, and blocks switched by their
            own `reparameterize`, `switch_to_deploy` or `fuse`, without it.
        dynamic: sizes that vary beside the batch, as in `torch.export`: `{1: "length"}` for one input, a
            tuple of such for several, a mapping of such for keyword arguments. None finds those that differ
            between the first batches of the splits.
        classes: names of a classifier's classes, in the order of its outputs, for people to read.
        limits: what methods may not change of the model, as `search` and `compress` find it by `exclude` and
            `at_least`; None is what is frozen alone.
    """

    model: Callable[[], nn.Module]
    train: Split
    val: Split | None = None
    test: Split | None = None
    loss: LossFn | None = None
    metrics: Mapping[str, MetricFn | Metric] | None = None
    recipe: Recipe = Recipe()
    weights: Weights | None = None
    name: str = "task"
    model_name: str = "model"
    input: InputSpec | None = None
    step: StepFn | None = None
    optimizer: OptimizerFn | None = None
    scheduler: SchedulerFn | None = None
    teacher: nn.Module | Callable[[], nn.Module] | None = None
    inputs: Callable[[Batch], Any] | None = None
    targets: Callable[[Batch], Any] | None = None
    outputs: Callable[[Any], Any] | None = None
    prepare: Callable[[nn.Module], nn.Module] | None = None
    dynamic: Any = None
    classes: Sequence[str] | None = None
    limits: Limits | None = None
    # Not to be given: `replace` hands it on.
    _splits: Splits | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        current = {name: getattr(self, name) for name in SPLITS}
        splits = Splits(current) if self._splits is None else self._splits.replaced(current)
        object.__setattr__(self, "_splits", splits)
        if self.classes is not None:
            object.__setattr__(self, "classes", _names(self.classes))
        if self.loss is None and self.step is None:
            object.__setattr__(self, "loss", nn.CrossEntropyLoss())
        if self.step is not None:
            self._refuse("a step", ("augment", "label_smoothing", "mixup"))
        if self.optimizer is not None:
            self._refuse("an optimizer", ("optimizer", "lr", "weight_decay", "momentum"))
        if self.scheduler is not None:
            self._refuse("a scheduler", ("warmup",))
        if self.recipe.label_smoothing and not self.cross_entropy:
            raise TaskError(
                "label_smoothing must be 0 where the loss is not cross entropy "
                f"but got {self.recipe.label_smoothing}."
            )

    def _refuse(self, own: str, settings: Sequence[str]) -> None:
        """Refuse settings of the recipe that something of the task's own takes the place of."""
        usual = Recipe()
        for name in settings:
            value = getattr(self.recipe, name)
            if value != getattr(usual, name):
                raise TaskError(
                    f"{name} of the recipe must not be given beside {own} of the task's own but is {value!r}."
                )

    @cached_property
    def cross_entropy(self) -> bool:
        """Whether outputs are logits of classes: the loss is cross entropy, as a module or as a function of
        one's own; or a step trains that names none, and accuracy is the metric. Tried but once."""
        return self.metrics is None if self.loss is None else is_cross_entropy(self.loss)

    @property
    def criterion(self) -> StepFn | LossFn | None:
        """What the loss of a batch comes from: the step, or the loss."""
        return self.step if self.step is not None else self.loss

    @property
    def trains_by(self) -> str:
        """Which of both that is."""
        return "step" if self.step is not None else "loss"

    def with_recipe(self, **changes: Any) -> Task:
        """The same task with fields of its recipe replaced."""
        return replace(self, recipe=replace(self.recipe, **changes))

    def limits_of(self, model: nn.Module) -> Limits:
        """The task's limits; where it has none, what is frozen of a model as it is."""
        return settle(model) if self.limits is None else self.limits

    @property
    def splits(self) -> Splits:
        """Where the batches of `train`, `val` and `test` come from."""
        assert self._splits is not None
        return self._splits

    @contextmanager
    def opened(self) -> Iterator[Task]:
        """The same task with splits to draw from inside.

        They are copies as another process would get them, but share tensors, arrays and bytes. So generators,
        files and worker processes of a data set are its own in each training, which gets the same batches
        whatever was drawn before. A split that cannot be copied is drawn from itself. A function is called
        once in a process, and what it makes is used by all trainings there. Worker processes end with it.

        Raises:
            TaskError: a function fails.
        """
        splits = self.splits.opened()
        current: Mapping[str, Any] = splits.current
        with closing(splits):
            yield replace(self, _splits=splits, **current)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch: as the recipe says, else as many as `train` says it has.

        Raises:
            TaskError: neither says so; nothing is passed over to be counted.
        """
        if self.recipe.steps_per_epoch is not None:
            return self.recipe.steps_per_epoch
        batches = batches_of(self.train)
        length = length_of(batches)
        if length is None:
            raise TaskError(
                f"train must have a length, or Recipe(steps_per_epoch=...) say how many batches an epoch is, "
                f"but is {described_split(batches)} without either."
            )
        return max(1, length)

    def first_batches(self, enough: Callable[[list[Any]], bool], split: str = "train") -> list[Any]:
        """The first batches of a pass over a split: the fewest that are enough, or all that there are.

        They are drawn once in a process, by a fixed seed and from a copy, so that no training knows of it.

        Args:
            enough: says of the batches so far, at least one, whether they are.
            split: "train", "val" or "test".

        Raises:
            TaskError: the data fail.
        """
        return self.splits.first(split, enough)

    def __getstate__(self) -> dict[str, Any]:
        # Splits are sent as they were given, whatever was drawn here.
        return {name: value for name, value in vars(self).items() if name not in SPLITS}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state, **state["_splits"].current)

    def inputs_of(self, batch: Batch) -> Inputs:
        """What the model is called with: a tensor, a tuple of arguments or a mapping of keyword arguments.

        Raises:
            TaskError: the batch is none of the forms that are known, and there is no `inputs`.
        """
        return self.inputs(batch) if self.inputs is not None else split_batch(batch)[0]

    def targets_of(self, batch: Batch) -> Any:
        """What a batch's outputs are compared with.

        Raises:
            TaskError: the batch is none of the forms that are known, and there is no `targets`.
        """
        return self.targets(batch) if self.targets is not None else split_batch(batch)[1]

    def answer(self, outputs: Any) -> Tensor:
        """The tensor that the loss sees of what the model returned.

        Raises:
            TaskError: there is no tensor among the outputs.
        """
        several = len(tensors(outputs)) > 1 and not isinstance(getattr(outputs, "logits", None), Tensor)
        if several and self.outputs is not None and "logits" not in outputs:
            seen = self.outputs(returned(outputs))
            if isinstance(seen, Tensor) and seen.is_floating_point():
                return seen
        return answer(outputs)

    def seen(self, outputs: Any) -> Any:
        """What metrics see of what the model returned."""
        return answer(outputs) if self.outputs is None else self.outputs(returned(outputs))

    def example(self, batch_size: int = 2) -> Any:
        """The first `batch_size` rows of the first training batch, repeated where fewer, as a model is called
        with them.

        Raises:
            TaskError: the training data are empty or hold no tensors.
        """
        batch = self.first_batch()
        inputs = self.inputs_of(batch)
        if not tensors(inputs):
            raise TaskError(
                f"train must yield inputs that are tensors but yielded {type(inputs).__name__} in a "
                f"{type(batch).__name__} (say by inputs=fn(batch) what the model is called with)."
            )
        return self.sized(repeated_rows(inputs, batch_size))

    def first_batch(self) -> Batch:
        """The first training batch.

        Raises:
            TaskError: there is none.
        """
        batches = self.first_batches(lambda drawn: True)
        if not batches:
            raise TaskError("train must yield at least one batch but it is empty.")
        return batches[0]

    def sized(self, inputs: Inputs) -> Inputs:
        """Inputs with the sizes of them that vary."""
        return inputs if self.dynamic is None else Varying(inputs, self.dynamic)

    def calibration(self, count: int = 256) -> list[Any]:
        """Batches of training inputs, of at least `count` rows together where there are as many."""
        batches = self.first_batches(lambda drawn: sum(rows(self.inputs_of(b)) for b in drawn) >= count)
        return [self.inputs_of(batch) for batch in batches]

    def calibration_rows(self, count: int) -> Any:
        """Training inputs of one size as one batch, `count` rows or as many as there are."""
        return take(concatenated(self.calibration(count)), slice(count))

    def input_json(self) -> dict[str, Any]:
        """The manifest's `input` entry, of which `inputs.from_json` makes inputs of the same shapes."""
        example = self.example()
        if len(leaves := tensors(example)) != 1 or arguments(example) != ((leaves[0],), {}):
            return to_json(example)
        described = self.input_spec().to_json()
        return described if self.dynamic is None else described | {"dynamic": to_json(example)["dynamic"]}

    def input_spec(self) -> InputSpec:
        """`input`, or the shape and dtype of the first training batch's only tensor."""
        if self.input is not None:
            return self.input
        (tensor,) = tensors(self.example())
        return InputSpec(tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
