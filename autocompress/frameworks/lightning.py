"""`from_lightning`: a task of a LightningModule, which trains by its own `training_step`.

Lightning is not imported for that: there is no `Trainer`, what a module logs goes nowhere, and of its hooks
none is called but `on_after_batch_transfer`.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from autocompress.errors import AutocompressError, TaskError, one_line
from autocompress.frameworks.copies import Copies
from autocompress.task import Recipe, Task

# What a LightningModule may override that would train it otherwise, and that nobody calls here.
_NOT_CALLED = (
    "backward",
    "configure_gradient_clipping",
    "lr_scheduler_step",
    "on_after_backward",
    "on_before_batch_transfer",
    "on_before_optimizer_step",
    "on_train_batch_start",
    "optimizer_step",
    "optimizer_zero_grad",
    "transfer_batch_to_device",
)
_LIGHTNING = ("lightning", "pytorch_lightning")
# What schedules change of an optimiser's groups.
_SCHEDULED = ("lr", "momentum", "betas")


def from_lightning(
    module: Any,
    datamodule: Any = None,
    *,
    train: Any = None,
    val: Any = None,
    test: Any = None,
    recipe: Recipe | None = None,
    trained: bool = True,
    network: str | None = None,
    **options: Any,
) -> Task:
    """A task of a LightningModule: its `training_step` trains, with what its `configure_optimizers` makes.

    What is compressed is what the module's `forward` computes, which `training_step` has to call as
    `self(...)`; or with `network`, one of its sub-modules, which it calls by name. There is no `Trainer`:
    gradients are clipped and accumulated as the recipe says, and epochs are the recipe's. A schedule is
    stepped as Lightning steps it, every step or epoch; without one the recipe's stands for it. Several
    optimisers, manual optimisation and schedules that follow a metric are refused.

    Args:
        module: not changed.
        datamodule: whose loaders stand for those that are not given.
        train: batches to train on; the module's own where there is neither this nor a datamodule.
        val: batches that candidates are compared on.
        test: batches that the final front alone is reported on.
        recipe: how often it trains; rates and decay are those of `configure_optimizers`.
        trained: whether the module's weights are the reference's as they are; otherwise the reference is
            trained from them, once per run.
        network: name of the sub-module that is compressed in place of what `forward` computes.
        options: further arguments of `Task`, such as `metrics`, `inputs`, `name` or `teacher`.

    Raises:
        TaskError: the module cannot be trained without a `Trainer`, or there are no training data.
    """
    _check(module)
    given = {
        name: split for name, split in (("train", train), ("val", val), ("test", test)) if split is not None
    }
    splits = {**_splits(module, datamodule), **given}
    if "train" not in splits:
        raise TaskError("train must be given where neither a datamodule nor the module has a loader.")
    try:
        own = copy.deepcopy(module)
    except Exception as error:
        raise TaskError(f"module must be copyable but: {type(error).__name__}: {one_line(error)}") from error
    training = _Training(own, network)
    model = own if network is None else _submodule(own, network)
    made: dict[str, Any] = {"step": LightningStep(training)}
    configured = training.configured(steps=1000, steps_per_epoch=100)
    if configured is not None and "optimizer" not in options:
        made |= {"optimizer": LightningOptimizer(training)}
        made |= {"scheduler": LightningScheduler(training)} if configured.schedules else {}
    kind = type(module).__name__
    made |= {"name": kind.lower(), "model_name": kind, "weights": model if trained else None}
    return Task(model=Copies(model), recipe=recipe or Recipe(), **{**splits, **made, **options})


class LightningStep:
    """A LightningModule's `training_step` as `fn(model, batch)`: where it calls itself, or the sub-module
    that is compressed, it calls the model."""

    def __init__(self, training: _Training) -> None:
        self.training, self.batches = training, 0

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """What `training_step` returned.

        Raises:
            TaskError: it computes with weights of its own instead.
        """
        module = self.training.calling(model)
        if _overridden(module, "on_after_batch_transfer"):
            batch = module.on_after_batch_transfer(batch, 0)
        wanted = inspect.signature(module.training_step).parameters.values()
        positional = [p for p in wanted if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        several = any(p.kind == p.VAR_POSITIONAL for p in wanted)
        arguments = (batch, self.batches) if several else (batch, self.batches)[: len(positional)]
        self.batches += 1
        try:
            returned = module.training_step(*arguments)
        except (RuntimeError, NotImplementedError) as error:
            # There are no numbers in the module's own weights.
            if "meta" in str(error).lower():
                raise TaskError(f"{_OTHERWISE} ({one_line(error)}).") from error
            raise
        loss = returned.get("loss") if isinstance(returned, Mapping) else returned
        if isinstance(loss, Tensor) and loss.is_meta:
            raise TaskError(f"{_OTHERWISE}.")
        return returned


_OTHERWISE = (
    "training_step must reach the network as self(...), or as the sub-module that network= names, because "
    "that is what is compressed, but computes with other weights of the module"
)


class LightningOptimizer:
    """What a LightningModule's `configure_optimizers` makes, over other groups of parameters."""

    def __init__(self, training: _Training) -> None:
        self.training = training

    def __call__(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """An optimiser in which each parameter has the settings of the one of its name; what is new has those
        of the layer that it is in, or else the first ones."""
        configured = self.training.configured(steps=1000, steps_per_epoch=100)
        assert configured is not None
        settings, optimizer = configured.optimizer.param_groups, _emptied(configured.optimizer)
        for group in groups:
            others = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            named = list(zip(group["param_names"], group["params"], strict=True))
            positions = [configured.position(self.training.full_name(name)) for name, _ in named]
            for position in dict.fromkeys(positions):
                members = [pair for pair, own in zip(named, positions, strict=True) if own == position]
                usual = {k: v for k, v in settings[position].items() if k not in ("params", "param_names")}
                # A schedule has set the rate already.
                usual["lr"] = usual.pop("initial_lr", usual["lr"])
                made = {**usual, **others, "params": members, "configured": position}
                optimizer.add_param_group(made)
        return optimizer


def _emptied(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimiser without parameters."""
    emptied = copy.deepcopy(optimizer)
    # Copies keep what every optimiser has; a schedule has put its own `step` beside.
    vars(emptied).update({k: v for k, v in vars(optimizer).items() if k not in {*vars(emptied), "step"}})
    emptied.param_groups = []
    emptied.state.clear()
    return emptied


class LightningScheduler:
    """The schedules that a LightningModule's `configure_optimizers` makes, for another optimiser."""

    def __init__(self, training: _Training) -> None:
        self.training = training

    def __call__(
        self, optimizer: torch.optim.Optimizer, total_steps: int, steps_per_epoch: int
    ) -> _Following:
        """Rates that follow those of the module's own schedules, which are made for so many steps."""
        configured = self.training.configured(total_steps, steps_per_epoch)
        assert configured is not None
        return _Following(optimizer, configured)


class _Following:
    """Gives an optimiser's groups the rates that the configured one's have after as many steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, configured: _Configured) -> None:
        self.optimizer, self.configured = optimizer, configured
        self._follow()

    def step(self) -> None:
        """The next step's rates."""
        self.configured.step()
        self._follow()

    def _follow(self) -> None:
        for group in self.optimizer.param_groups:
            source = self.configured.optimizer.param_groups[group["configured"]]
            group.update({key: source[key] for key in _SCHEDULED if key in source})


@dataclass
class _Configured:
    """What `configure_optimizers` made.

    Args:
        optimizer: over parameters without numbers; it takes no steps.
        schedules: of it, each with the number of optimiser steps between two of its own.
        positions: name of a parameter → its group.
        done: optimiser steps so far.
    """

    optimizer: torch.optim.Optimizer
    schedules: list[tuple[Any, int]]
    positions: dict[str, int]
    done: int = 0

    def step(self) -> None:
        """Let the schedules go on by an optimiser step."""
        self.done += 1
        with warnings.catch_warnings():
            # That the optimiser takes no steps.
            warnings.simplefilter("ignore")
            for scheduler, every in self.schedules:
                if self.done % every == 0:
                    scheduler.step()

    def position(self, name: str) -> int:
        """The group of a parameter; of a new one that of the layer that it is in, or of the layers around."""
        around = name
        while name not in self.positions and "." in around:
            around = around.rpartition(".")[0]
            name = next((known for known in self.positions if known.startswith(f"{around}.")), name)
        return self.positions.get(name, 0)


class _Training:
    """A LightningModule as far as it trains: without the numbers of its parameters, which the model has.

    Args:
        module: not changed.
        network: name of the sub-module that is compressed; None where that is what `forward` computes.
    """

    def __init__(self, module: Any, network: str | None) -> None:
        self.module, self.network = _without_numbers(module), network
        # Nobody hears of what is logged.
        vars(self.module).update(log=_nothing, log_dict=_nothing, print=_nothing)

    def full_name(self, name: str) -> str:
        """The name in the module of a parameter of what is compressed."""
        return name if self.network is None else f"{self.network}.{name}"

    def calling(self, model: nn.Module) -> Any:
        """The module, which calls a model in the place of what is compressed; with its buffers beside it."""
        # Copies of a module have none, and then all epochs are the first.
        vars(self.module)["_trainer"] = _NoTrainer()
        if self.network is None:
            vars(self.module)["forward"] = model
        else:
            owner, _, leaf = self.network.rpartition(".")
            self.module.get_submodule(owner)._modules[leaf] = model
        device = next(model.parameters()).device
        if getattr(self.module, "_device", device) != device:
            for part in self.module.modules():
                part._buffers.update({n: b.to(device) for n, b in part._buffers.items() if b is not None})
            vars(self.module)["_device"] = device
        return self.module

    def configured(self, steps: int, steps_per_epoch: int) -> _Configured | None:
        """What its `configure_optimizers` makes for a training of so many steps; None where it makes nothing.

        Raises:
            TaskError: it fails, or makes what only a `Trainer` can use.
        """
        module = copy.deepcopy(self.module)
        vars(module)["_trainer"] = _Planned(steps, steps_per_epoch)
        try:
            made = module.configure_optimizers()
        except AutocompressError:
            raise
        except Exception as error:
            raise TaskError(
                f"configure_optimizers must make an optimizer but failed: {type(error).__name__}: "
                f"{one_line(error)}"
            ) from error
        optimizers, schedulers = _parts(made)
        if not optimizers:
            return None
        if len(optimizers) > 1 or not isinstance(optimizers[0], torch.optim.Optimizer):
            raise TaskError(f"configure_optimizers must make one optimizer but made {len(optimizers)}.")
        schedules = [_schedule(entry, steps_per_epoch) for entry in schedulers]
        return _Configured(optimizers[0], schedules, self._positions(module, optimizers[0]))

    def _positions(self, module: Any, optimizer: torch.optim.Optimizer) -> dict[str, int]:
        """Name of each parameter that trains → its group."""
        group_of = {id(p): n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        inside = self.full_name("") if self.network is not None else ""
        left_out = [n for n, p in named.items() if id(p) not in group_of and n.startswith(inside)]
        if left_out:
            raise TaskError(
                "configure_optimizers must train all parameters that are not frozen but leaves out "
                f"{len(left_out)}, such as {left_out[0]!r} (requires_grad_(False) freezes one)."
            )
        return {name: group_of[id(p)] for name, p in named.items() if id(p) in group_of}


class _NoTrainer:
    """Says of whatever a module asks of its `Trainer` that there is none."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        # No AttributeError, which a module would take for its own.
        raise RuntimeError(f"there is no Trainer that could say its {name!r}")


class _Planned(_NoTrainer):
    """What `configure_optimizers` may ask."""

    def __init__(self, steps: int, steps_per_epoch: int) -> None:
        self.estimated_stepping_batches = self.max_steps = steps
        self.num_training_batches = steps_per_epoch
        self.max_epochs = math.ceil(steps / steps_per_epoch)
        self.accumulate_grad_batches = self.num_devices = self.world_size = 1


def _nothing(*_: Any, **__: Any) -> None:
    return


def _without_numbers(module: Any) -> Any:
    """A copy whose parameters have shapes alone, in training."""
    bare = copy.deepcopy(module).train()
    made: dict[int, nn.Parameter] = {}
    for part in bare.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) not in made:
                shape = torch.empty_like(parameter, device="meta")
                made[id(parameter)] = nn.Parameter(shape, parameter.requires_grad)
            part._parameters[name] = None if parameter is None else made[id(parameter)]
    return bare


def _parts(made: Any) -> tuple[list[Any], list[Any]]:
    """Optimisers and schedulers in the forms that `configure_optimizers` may return."""
    if made is None:
        return [], []
    if isinstance(made, Mapping):
        return [made["optimizer"]], [made["lr_scheduler"]] if made.get("lr_scheduler") is not None else []
    if isinstance(made, (list, tuple)):
        if len(made) == 2 and all(isinstance(part, (list, tuple)) for part in made):
            return list(made[0]), list(made[1])
        parts = [_parts(entry) for entry in made]
        return [o for optimizers, _ in parts for o in optimizers], [s for _, own in parts for s in own]
    return [made], []


def _schedule(entry: Any, steps_per_epoch: int) -> tuple[Any, int]:
    """A scheduler, and the optimiser steps between two of its own."""
    settings = entry if isinstance(entry, Mapping) else {"scheduler": entry}
    scheduler = settings["scheduler"]
    if isinstance(scheduler, ReduceLROnPlateau) or settings.get("reduce_on_plateau"):
        raise TaskError(
            "configure_optimizers must make a scheduler that follows no metric but made a "
            f"{type(scheduler).__name__}."
        )
    every = steps_per_epoch if settings.get("interval", "epoch") == "epoch" else 1
    return scheduler, every * int(settings.get("frequency", 1))


def _check(module: Any) -> None:
    """Refuse what is no LightningModule, or cannot be trained without a `Trainer`."""
    kind = type(module).__name__
    if not isinstance(module, nn.Module) or not callable(getattr(module, "training_step", None)):
        raise TaskError(f"module must be a LightningModule with a training_step but is a {kind}.")
    if not getattr(module, "automatic_optimization", True):
        raise TaskError("module must leave optimisation to others but has automatic_optimization = False.")
    overridden = [name for name in _NOT_CALLED if _overridden(module, name)]
    if overridden:
        raise TaskError(
            f"module must train without hooks of its own but overrides {', '.join(overridden)}, which a "
            "Trainer alone would call (write a step of your own: Task(step=...))."
        )


def _overridden(owner: Any, name: str) -> bool:
    """Whether a module or a datamodule has a method that is not Lightning's own."""
    if name in vars(owner):
        return True
    definer = next((cls for cls in type(owner).__mro__ if name in vars(cls)), None)
    return definer is not None and definer.__module__.partition(".")[0] not in _LIGHTNING


def _submodule(module: Any, name: str) -> nn.Module:
    try:
        found: nn.Module = module.get_submodule(name)
    except AttributeError as error:
        names = ", ".join(repr(child) for child, _ in module.named_children())
        raise TaskError(f"network must name a sub-module ({names}) but got {name!r}.") from error
    return found


def _splits(module: Any, datamodule: Any) -> dict[str, Any]:
    """The loaders that a datamodule, or else the module, has."""
    if datamodule is not None and not hasattr(datamodule, "train_dataloader"):
        raise TaskError(f"datamodule must be a LightningDataModule but is a {type(datamodule).__name__}.")
    owner = module if datamodule is None else datamodule
    splits: dict[str, Any] = {}
    try:
        if datamodule is not None:
            datamodule.prepare_data()
            datamodule.setup("fit")
        for split in ("train", "val", "test"):
            if not _overridden(owner, f"{split}_dataloader"):
                continue
            if split == "test" and datamodule is not None:
                datamodule.setup("test")
            loaders = getattr(owner, f"{split}_dataloader")()
            loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
            if len(loaders) > 1:
                raise TaskError(f"{split}_dataloader must give one loader but gives {len(loaders)}.")
            if loaders and loaders[0] is not None:
                splits[split] = loaders[0]
    except AutocompressError:
        raise
    except Exception as error:
        raise TaskError(
            f"{type(owner).__name__} must give its loaders but failed: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
    return splits
