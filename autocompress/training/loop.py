"""The only training loop: reference, in-training compression and fine-tuning all pass through it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import DivergedError, TaskError
from autocompress.methods.base import Finished, ParamGroup, Session
from autocompress.task import Batch, Batches, Inputs, Limits, LossFn, Recipe, Task, call, moved, on_device
from autocompress.task.criterion import own_copy, trained_parameters
from autocompress.task.losses import ignored_label, is_cross_entropy
from autocompress.task.opening import passed, reading
from autocompress.training.augment import augmented, mixed
from autocompress.training.averaging import Averaging
from autocompress.training.clipping import backward, greatest_norm
from autocompress.training.distillation import Distillation
from autocompress.training.optimization import Optimization, begin
from autocompress.training.own_step import carried, taken

# Batches that the statistics of batch norm are averages over, where they are estimated anew.
BATCH_NORM_BATCHES = 50
# Steps between two looks at a loss that is not on the CPU, one in a second or so.
_BETWEEN_CHECKS = 50

# What is drawn of a pass that has ended.
_END: Any = object()

EpochReport = Callable[[Mapping[str, float]], None]


class Plain(Session):
    """Training without a method."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def finish(self) -> Finished:
        """Give the model as it was trained, without edits."""
        return Finished(self.model, (), self.model)


@dataclass
class Clock:
    """Seconds spent inside training and evaluation steps, for the overhead figure.

    Args:
        seconds: of all steps.
        method_seconds: of those, what a method did between optimiser steps, such as LC's C steps.
    """

    seconds: float = 0.0
    method_seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside as steps."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    @contextmanager
    def method(self) -> Iterator[None]:
        """Count what runs inside, which is inside of `running`, as the method's own."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.method_seconds += time.perf_counter() - start

    def add_method(self, seconds: float) -> None:
        """Count seconds that a method measured itself."""
        self.seconds += seconds
        self.method_seconds += seconds


@dataclass
class Trainer:
    """Trains models of one task; `history` has one entry per epoch over all its calls.

    One schedule of the learning rate spans all calls, so that a model whose channels are being
    selected trains at a high rate and what is left of it at a falling one. So does the pass over the data:
    it goes on in the next epoch and call, and another begins at its end. A call that trains without a method
    ends with the average of the weights where the recipe says so.

    Args:
        task: data, loss and recipe.
        epochs: that all calls of `fit` add up to.
        lr_scale: factor on the recipe's learning rate.
        report: receives each epoch's entry, and the seconds that all steps took so far.
        distillation: learns from the reference too; None from the targets alone.
        reference: whether it is the reference that trains, exactly as the recipe says; trials may clip.
        watch: sees each epoch's number and session, and adds to what is reported of the epoch; what it takes
            counts as steps.

    Attributes:
        criterion: the task's step or loss; a copy, which all calls train along, where it has tensors of its
            own.
        steps: optimiser steps so far.
        asked: epochs that all calls so far asked for.
        losses: of the epoch that runs.
        told: by sessions, of the epoch that runs.
    """

    task: Task
    epochs: int
    lr_scale: float = 1.0
    report: EpochReport = lambda entry: None
    distillation: Distillation | None = None
    reference: bool = False
    watch: Callable[[int, Session], Mapping[str, float]] = lambda epoch, session: {}
    history: list[dict[str, float]] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    criterion: Any = field(init=False)
    steps: int = field(init=False, default=0)
    asked: float = field(init=False, default=0.0)
    losses: _Losses = field(init=False, repr=False)
    told: dict[str, float] = field(init=False, default_factory=dict)
    _pass: Iterator[Any] = field(init=False, repr=False, default_factory=lambda: iter(()))

    def __post_init__(self) -> None:
        self.criterion = own_copy(self.task.criterion)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch.

        Raises:
            TaskError: neither the recipe nor the training split says how many batches that is.
        """
        return math.ceil(self.task.batches_per_epoch / self.task.recipe.accumulate)

    def fit(self, model: nn.Module, epochs: float, session: Session | None = None) -> None:
        """Train in place for some epochs, with a method's session or by itself.

        Where that ends in the middle of an epoch, the next call begins with what is left of it.

        Raises:
            DivergedError: the loss became NaN or infinite.
        """
        if not epochs:
            return
        per_epoch, first = self.steps_per_epoch, self.steps
        self.asked += epochs
        goal = round(self.asked * per_epoch)
        if goal <= first:
            return
        recipe, device = self.task.recipe, device_of(model)
        batches = on_device(self.task.train, device)
        _set_memory_format(model, recipe, torch.channels_last)
        averaging = Averaging(model, recipe.ema) if recipe.ema and session is None else None
        session = session or averaging or Plain(model)
        step = Step(self, model, session, self._optimization(session, device), device)
        while self.steps < goal:
            done = self.steps % per_epoch
            if not done:
                self.losses = _Losses(len(self.history) + 1, device)
            end = min(goal, self.steps + per_epoch - done)
            with self.clock.running():
                set_training(model, self.task.limits)
                while self.steps < end:
                    self.losses.add(step(self._batches_to_fit(batches)))
                    self.steps += 1
                    with self.clock.method():
                        session.after_step(min((self.steps - first) / (goal - first), 1.0))
                with self.clock.method():
                    self.told |= session.after_epoch((end - first) / (goal - first))
            if end == round(self.epochs * per_epoch):
                self._pass = iter(())  # whose worker processes end with it
            if end % per_epoch == 0:
                self._end_epoch(session)
        _set_memory_format(model, recipe, torch.contiguous_format)
        if averaging is not None:
            averaging.finish()
            with self.clock.running():
                reestimate_batch_norm(model, self.task, BATCH_NORM_BATCHES)

    def _batches_to_fit(self, batches: Batches) -> list[Batch]:
        """The next batches, as many as an optimiser step has, from one pass after the other."""
        accumulate, epoch = self.task.recipe.accumulate, self.task.batches_per_epoch
        count = min(accumulate, epoch - self.steps % self.steps_per_epoch * accumulate)
        drawn: list[Batch] = []
        while len(drawn) < count:
            with reading("train"):
                batch = next(self._pass, _END)
                if batch is _END:
                    self._pass = iter(batches)
                    batch = next(self._pass, _END)
            if batch is _END:
                raise TaskError("train must yield at least one batch in each pass but it is empty.")
            drawn.append(batch)
        return drawn

    def _optimization(self, session: Session, device: torch.device) -> Optimization:
        """Over what a session and the loss have to train, with the schedule where it is by now."""
        if isinstance(self.criterion, nn.Module):
            self.criterion.to(device)
        along = trained_parameters(self.criterion)
        names = {id(parameter): name for name, parameter in session.model.named_parameters()}
        names |= {id(parameter): f"{self.task.trains_by}.{name}" for name, parameter in along.items()}
        groups = [*session.param_groups(), ParamGroup(list(along.values()))]
        per_epoch = self.steps_per_epoch
        return begin(self.task, groups, names, self.lr_scale, self.epochs * per_epoch, self.steps, per_epoch)

    def _end_epoch(self, session: Session) -> None:
        number = len(self.history) + 1
        with self.clock.running():
            entry = {"epoch": float(number), "loss": self.losses.mean(), **self.told}
        self.told = {}
        self.history.append(entry)
        with self.clock.running():
            seen = self.watch(number, session)
        self.report({**entry, **seen, "seconds": self.clock.seconds})


class Step:
    """One optimiser step, and what of it stays the same from step to step."""

    def __init__(
        self,
        trainer: Trainer,
        model: nn.Module,
        session: Session,
        optimization: Optimization,
        device: torch.device,
    ) -> None:
        self.session, self.optimization, self.device = session, optimization, device
        self.task, self.distillation = trainer.task, trainer.distillation
        self.recipe = trainer.task.recipe
        self.forward = _compiled(model) if self.recipe.compile else model
        self.criterion = smoothed(trainer.criterion, self.recipe.label_smoothing)
        self.clipped = [*model.parameters(), *trained_parameters(trainer.criterion).values()]
        self.clip = greatest_norm(self.task, optimization.optimizer, trainer.reference)

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        """Take it on the mean loss of some batches; the mean of the task's own losses, as trials weigh
        penalties and distillation differently."""
        self.optimization.optimizer.zero_grad(set_to_none=True)
        losses = []
        for position, batch in enumerate(batches):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.mixed_precision):
                loss, own = self._loss(batch) if self.task.step is None else self._loss_of_step(batch)
            last = position == len(batches) - 1
            penalty = self.session.penalty() if last else None
            backward(loss / len(batches), penalty, self.clipped, self.clip)
            losses.append(own.detach())
        self.optimization.step()
        return torch.stack(losses).mean()

    def _loss_of_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of a batch by the task's own step: with what is learned from the teacher, and without."""
        own, calls = taken(self.criterion, self.forward, carried(batch, self.device))
        loss = own if self.distillation is None else self.distillation.of_calls(self.task, calls, own)
        return loss, own

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of a batch, mixed two by two where the recipe says so: with what is learned from the teacher, and
        without."""
        inputs = augmented(moved(self.task.inputs_of(batch), self.device), self.recipe.augment)
        targets = moved(self.task.targets_of(batch), self.device)
        if self.recipe.mixup:
            inputs, order, share = mixed(inputs, self.recipe.mixup)
            outputs = self._answer(inputs)
            straight, crossed = self.criterion(outputs, targets), self.criterion(outputs, targets[order])
            own = share * straight + (1 - share) * crossed
        else:
            outputs = self._answer(inputs)
            own = self.criterion(outputs, targets)
        loss = own if self.distillation is None else self.distillation(self.task, inputs, outputs, own)
        return loss, own

    def _answer(self, inputs: Inputs) -> Tensor:
        return self.task.answer(call(self.forward, inputs))


class _Losses:
    """The losses of an epoch, added up where they are computed.

    On the CPU each is looked at. On other devices that would wait for the step to end, so that the next one
    could not be prepared meanwhile; there their sum is looked at once in a while, which is no less sure to
    find one that is not finite.
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self.epoch, self.count = epoch, 0
        self.between = 1 if device.type == "cpu" else _BETWEEN_CHECKS
        self.total = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, loss: Tensor) -> None:
        """Count a step's loss; raises DivergedError."""
        self.total += loss.reshape(())
        self.count += 1
        if self.count % self.between == 0:
            self._check(loss)

    def mean(self) -> float:
        """Of all steps; 0 where there were none; raises DivergedError."""
        self._check(self.total)
        return float(self.total) / max(self.count, 1)

    def _check(self, shown: Tensor) -> None:
        if not math.isfinite(float(self.total)):
            value = float(shown) if not math.isfinite(float(shown)) else float(self.total)
            raise DivergedError(f"the training loss became {value} in epoch {self.epoch}.")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next(model.parameters()).device


def _compiled(model: nn.Module) -> nn.Module:
    """The model through `torch.compile`; as it is where hooks give it other tensors in each step."""
    if any(module._forward_pre_hooks or module._forward_hooks for module in model.modules()):
        return model
    compiled: Any = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    return compiled


def smoothed(loss: LossFn, share: float) -> LossFn:
    """Cross entropy against targets of which a share is spread over all classes; others as they are.

    Szegedy et al., *Rethinking the Inception Architecture*, arXiv 1512.00567, section 7.
    """
    if not share or not is_cross_entropy(loss):
        return loss
    if not isinstance(loss, nn.CrossEntropyLoss):
        return nn.CrossEntropyLoss(ignore_index=ignored_label(loss), label_smoothing=share)
    made = copy.copy(loss)
    made.label_smoothing = share
    return made


def set_training(model: nn.Module, limits: Limits | None) -> None:
    """Put a model in training, but for normalisations whose statistics stay as they are."""
    model.train()
    if limits is not None and limits.steady:
        for name, module in model.named_modules(remove_duplicate=False):
            if name in limits.steady:
                module.eval()


def reestimate_batch_norm(model: nn.Module, task: Task, count: int) -> None:
    """Replace running statistics by the plain average over `count` training batches, in place, but for those
    that stay as they are."""
    steady = frozenset() if task.limits is None else task.limits.steady
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and name not in steady
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    device = device_of(model)
    # A pass over the training's own data may be under way.
    with torch.no_grad(), task.opened() as aside:
        for batch in islice(passed(on_device(aside.train, device), "train"), count):
            call(model, moved(task.inputs_of(batch), device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _set_memory_format(model: nn.Module, recipe: Recipe, layout: torch.memory_format) -> None:
    """Lay out what 2-d convolutions may hold; `Module.to` refuses a model that has 3-d ones too."""
    if recipe.channels_last and any(isinstance(m, nn.Conv2d) for m in model.modules()):
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.to(memory_format=layout)
