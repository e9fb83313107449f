"""What a user brings: `Task` and `Recipe`; and what a search space sees of it: `ModelProfile`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from autocompress.errors import SettingsError, TaskError
from autocompress.task.limits import Limits, settle
from autocompress.task.losses import is_cross_entropy
from autocompress.task.pretrained import Weights

if TYPE_CHECKING:
    # It takes seconds to import, and who uses it has imported it.
    from torchmetrics import Metric

Batch = tuple[Tensor, Tensor]
Batches = Iterable[Batch]
MetricFn = Callable[[Tensor, Tensor], float]
LossFn = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class MovableBatches(Protocol):
    """Batches that can be drawn where the model is, such as `TensorBatches`."""

    def on_device(self, device: torch.device) -> Batches:
        """The same batches, whose tensors lie on that device."""
        ...


def on_device(batches: Batches, device: torch.device) -> Batches:
    """Batches drawn on a device where they can be; others as they are, to be copied one by one."""
    return batches.on_device(device) if isinstance(batches, MovableBatches) else batches


AUGMENTATIONS = ("none", "crop-flip", "crop-flip-erase")


@dataclass(frozen=True)
class Recipe:
    """How a model of this task is trained; every method trains by it.

    Args:
        epochs: epochs of one trial, in-training compression and fine-tuning together.
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
        mixed_precision: bfloat16 where PyTorch's autocast deems it safe.
        compile: run models through `torch.compile` while they train, except where a method's gates change
            them in each step. Compiling takes up to a minute for each model, so for long trainings.
    """

    epochs: int = 10
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

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise SettingsError(f"epochs must be at least 1 but got {self.epochs}.")
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


@dataclass(frozen=True)
class Task:
    """A model, its data and how it is trained and judged.

    Args:
        model: makes a new, untrained model at each call.
        train: batches `(inputs, targets)`; iterated anew each epoch.
        val: batches that candidates are compared on; None carves them from `train`, or takes half of `test`
            where there are `weights`, which may have been trained on any row of `train`.
        test: batches that the final front alone is reported on; None reports none.
        loss: `loss(outputs, targets)`, a scalar tensor.
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
        teacher: what trials that distil learn from in place of the best model so far: a module that takes
            what the model takes and returns what it returns, or a function that makes one.
        limits: what methods may not change of the model, as `search` and `compress` find it by `exclude` and
            `at_least`; None is what is frozen alone.
    """

    model: Callable[[], nn.Module]
    train: Batches
    val: Batches | None = None
    test: Batches | None = None
    loss: LossFn = field(default_factory=nn.CrossEntropyLoss)
    metrics: Mapping[str, MetricFn | Metric] | None = None
    recipe: Recipe = Recipe()
    weights: Weights | None = None
    name: str = "task"
    model_name: str = "model"
    input: InputSpec | None = None
    teacher: nn.Module | Callable[[], nn.Module] | None = None
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if self.recipe.label_smoothing and not self.cross_entropy:
            raise TaskError(
                "label_smoothing must be 0 where the loss is not cross entropy "
                f"but got {self.recipe.label_smoothing}."
            )

    @cached_property
    def cross_entropy(self) -> bool:
        """Whether the loss is cross entropy, as a module or as a function of one's own; tried but once."""
        return is_cross_entropy(self.loss)

    def with_recipe(self, **changes: Any) -> Task:
        """The same task with fields of its recipe replaced."""
        return replace(self, recipe=replace(self.recipe, **changes))

    def limits_of(self, model: nn.Module) -> Limits:
        """The task's limits; where it has none, what is frozen of a model as it is."""
        return settle(model) if self.limits is None else self.limits

    def example(self, batch_size: int = 2) -> Tensor:
        """The first `batch_size` training inputs, repeated where fewer, `(batch_size, *input.shape)`.

        Raises:
            TaskError: the training data are empty or are not `(inputs, targets)` of tensors.
        """
        for batch in self.train:
            if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
                raise TaskError(
                    f"train must yield (inputs, targets) pairs of tensors but yielded {type(batch).__name__}."
                )
            inputs = batch[0]
            if not isinstance(inputs, Tensor) or not isinstance(batch[1], Tensor):
                raise TaskError(
                    "train must yield (inputs, targets) pairs of tensors but yielded "
                    f"({type(batch[0]).__name__}, {type(batch[1]).__name__})."
                )
            return inputs[torch.arange(batch_size) % len(inputs)]
        raise TaskError("train must yield at least one batch but it is empty.")

    def calibration(self, count: int = 256) -> list[Tensor]:
        """Training inputs to calibrate int8 on, at least `count` where there are as many."""
        batches: list[Tensor] = []
        for inputs, _ in self.train:
            batches.append(inputs)
            if sum(len(batch) for batch in batches) >= count:
                break
        return batches

    def input_spec(self) -> InputSpec:
        """`input`, or the shape and dtype of the first training batch."""
        if self.input is not None:
            return self.input
        example = self.example()
        return InputSpec(tuple(example.shape[1:]), str(example.dtype).removeprefix("torch."))


@dataclass(frozen=True)
class GroupProfile:
    """One coupled channel group.

    Args:
        name: of the group.
        width: its units.
        params: of the layers that it runs through, as far as it does.
        macs: of them.
        losses: what the model is predicted to lose, in the task's loss on training rows, when it keeps
            `width_at` 0, 1, … of the group's units; the last is 0. Empty where that was not probed.
        least: units that must stay.
    """

    name: str
    width: int
    params: int
    macs: int
    losses: tuple[float, ...] = ()
    least: int = 1

    def width_at(self, level: int) -> int:
        """The units that are kept where `losses[level]` is lost: equal shares of the width, rounded up."""
        return -(-self.width * (level + 1) // len(self.losses))


@dataclass(frozen=True)
class CostTerm:
    """A part of a model's cost that shrinks with the shares which some groups keep, as their product.

    Args:
        groups: positions in the profile's list: of none, of one, or of two (a weight between both; twice the
            same where one group makes and reads it), in order.
        params: of the whole model.
        macs: of one input through the whole model.
    """

    groups: tuple[int, ...]
    params: float
    macs: float


@dataclass(frozen=True)
class CutProfile:
    """A cut point: a tensor that every path through the model passes.

    Args:
        name: the module that makes it.
        shape: without the batch.
        params: of the layers up to here.
        macs: of one input, up to here.
        partners: later cut points that a translator can lead to, as positions in the list.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    macs: int
    partners: tuple[int, ...]


@dataclass(frozen=True)
class LayerProfile:
    """A linear or convolution layer: its class, its cost, whether two layers may stand for it, and the share
    of its cost that these must have at least."""

    name: str
    kind: str
    params: int
    macs: int
    factorable: bool
    least: float = 0.0


@dataclass(frozen=True)
class ModelProfile:
    """What a search space may know of a model: sizes and costs, no tensors.

    Args:
        params: of the whole model.
        macs: of one input through the whole model.
        groups: what channel removal may touch, from input to output.
        cut_points: single tensors that all paths pass through, from input to output.
        layers: linear and convolution layers that may be changed, from input to output.
        outputs: shape of what the model makes of one input; empty where that is not one tensor.
        mixing_blocks: blocks that mix a path of convolutions with one of attention.
        cost_terms: what `params` and `macs` are the sums of, by the groups that they shrink with; empty in a
            profile that was stored before there were any.
        new_head: whether a new head may stand for what follows the last cut point.
        staying_params: of linear and convolution layers that stay as they are, which are none of `layers`.
        staying_macs: of them.
    """

    params: int
    macs: int
    groups: tuple[GroupProfile, ...]
    cut_points: tuple[CutProfile, ...] = ()
    layers: tuple[LayerProfile, ...] = ()
    outputs: tuple[int, ...] = ()
    mixing_blocks: int = 0
    cost_terms: tuple[CostTerm, ...] = ()
    new_head: bool = True
    staying_params: int = 0
    staying_macs: int = 0

    def to_json(self) -> dict[str, Any]:
        """Turn the profile into JSON-able data, which `from_json` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ModelProfile:
        """Read the profile that `to_json` wrote."""
        return ModelProfile(
            params=data["params"],
            macs=data["macs"],
            groups=tuple(
                GroupProfile(**{**group, "losses": tuple(group.get("losses", ()))})
                for group in data["groups"]
            ),
            cut_points=tuple(
                CutProfile(**{**cut, "shape": tuple(cut["shape"]), "partners": tuple(cut["partners"])})
                for cut in data["cut_points"]
            ),
            layers=tuple(LayerProfile(**layer) for layer in data["layers"]),
            outputs=tuple(data["outputs"]),
            mixing_blocks=data["mixing_blocks"],
            cost_terms=tuple(
                CostTerm(tuple(term["groups"]), term["params"], term["macs"])
                for term in data.get("cost_terms", ())
            ),
            new_head=data.get("new_head", True),
            staying_params=data.get("staying_params", 0),
            staying_macs=data.get("staying_macs", 0),
        )
