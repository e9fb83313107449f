"""The one interface of all compressors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from autocompress.errors import SettingsError, refuse_unknown
from autocompress.surgery.edits import Plan
from autocompress.task import ModelProfile, Task


@dataclass
class ParamGroup:
    """Parameters that are trained alike.

    Args:
        params: the parameters.
        lr_scale: their learning rate relative to the recipe's.
        weight_decay: None means the recipe's.
    """

    params: list[nn.Parameter]
    lr_scale: float = 1.0
    weight_decay: float | None = None


@dataclass
class CompressorState:
    """What a compressor keeps while it trains.

    Args:
        model: the module to train.
        attach_seconds: what `attach` took for the method's own work, beside reading the model's graph.
    """

    model: nn.Module
    attach_seconds: float = field(default=0.0, kw_only=True)


S = TypeVar("S", bound=CompressorState)


class Compressor(ABC, Generic[S]):
    """Decides, while a model trains, what should be physically changed in it.

    A subclass `Foo` names its frozen configuration dataclass as `Config`; `Foo(Foo.Config(ratio=0.5))` and
    `Foo(ratio=0.5)` make the same. The training loop calls `attach` once, `penalty` and `after_step` each
    step, `after_epoch` each epoch, and in the end `plan` and `release`.
    """

    Config: ClassVar[type[Any]]
    # Order in a pipeline: 0 changes depth, 1 channels, 2 ranks, 3 how weights are stored.
    level: ClassVar[int] = 1

    def __init__(self, config: Any = None, **settings: Any) -> None:
        """A method that is set up.

        Args:
            config: the method's own `Config`; None makes one.
            settings: fields of the `Config` that is made, by name.

        Raises:
            SettingsError: a setting is unknown or out of range, or `config` is not the method's own.
        """
        name = type(self).__name__
        if config is None:
            refuse_unknown(name, settings, [option.name for option in fields(self.Config) if option.init])
            config = self.Config(**settings)
        elif settings:
            raise SettingsError(f"{name} must be given a Config or its fields but got both.")
        elif not isinstance(config, self.Config):
            kind = type(config)
            raise SettingsError(
                f"{name} must be given its own Config but got {kind.__module__}.{kind.__qualname__}."
            )
        self.config = config

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        """Why this method can do nothing for such a model; None where it can."""
        return None

    @abstractmethod
    def attach(self, model: nn.Module, task: Task) -> S:
        """Prepare `model` for training, in place: gated, factorised, re-wired or penalised."""

    def param_groups(self, state: S) -> list[ParamGroup]:
        """The parameters to train; one group of all by default."""
        return [ParamGroup([p for p in state.model.parameters() if p.requires_grad])]

    def penalty(self, state: S) -> Tensor:
        """A differentiable scalar that is added to the task's loss; 0 by default."""
        return torch.zeros(())

    def after_step(self, state: S, progress: float) -> None:
        """Called after each optimiser step; `progress` in (0, 1] is the share of steps done."""
        return

    def after_epoch(self, state: S, progress: float) -> Mapping[str, float]:
        """Called after each epoch; returns what to log, "ratio/<group>" being drawn over time."""
        return {}

    @abstractmethod
    def plan(self, state: S) -> Plan:
        """What the trained state says should be physically changed."""

    @abstractmethod
    def release(self, state: S) -> nn.Module:
        """The trained model without training-time machinery; its graph will do, layers under their names."""
