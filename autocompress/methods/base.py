"""The two interfaces of a method: what is configured (`Method`), and one training with it (`Session`)."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import SettingsError, refuse_unknown
from autocompress.graph import Analysis
from autocompress.surgery import Edit
from autocompress.task import ModelProfile, Task


class Stage(IntEnum):
    """What a method changes, in the order in which methods follow one another: at last, at which precision
    the model is to compute, which changes nothing of its structure."""

    DEPTH = 0
    CHANNELS = 1
    RANKS = 2
    STORAGE = 3
    PRECISION = 4


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


@dataclass(frozen=True)
class Finished:
    """What a session ends with.

    Args:
        model: the compact model, physically smaller.
        edits: what leads from the model that the session began with to it, as data.
        expected: the trained model at full size, which the compact one must equal.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    expected: nn.Module


class Session(ABC):
    """One training of a model with a method; it owns all that the method keeps meanwhile.

    The training loop calls `penalty` and `after_step` each step and `after_epoch` each epoch, and who
    began the session calls `finish` when the training is over. Between epochs a `copy.deepcopy` of it may be
    finished while the original trains on, to see what it would end with. So what a session keeps then must
    allow it: no tensor that holds a graph, no function that closes over the model.
    """

    # What trains: gated, factorised, re-wired or penalised. A session sets it before it returns.
    model: nn.Module
    # Seconds that beginning took for the method's own work, beside reading the model's graph.
    start_seconds: float = 0.0

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Count what runs inside as the method's own work at its start: solving for ranks, codes or
        translators, not tracing the model nor putting modules into it."""
        begun = time.perf_counter()
        yield
        self.start_seconds += time.perf_counter() - begun

    def param_groups(self) -> list[ParamGroup]:
        """The parameters to train, each once; one group of all that require gradients by default."""
        return [ParamGroup([p for p in self.model.parameters() if p.requires_grad])]

    def penalty(self) -> Tensor:
        """A differentiable scalar that is added to the task's loss; 0 by default."""
        return torch.zeros(())

    def after_step(self, progress: float) -> None:
        """Hear of an optimiser step.

        Args:
            progress: share of the session's steps that are done, in (0, 1].
        """
        return

    def after_epoch(self, progress: float) -> Mapping[str, float]:
        """Hear of an epoch.

        Args:
            progress: share of the session's epochs that are done, in (0, 1].

        Returns:
            What to log; "ratio/<name>" is drawn over time.
        """
        return {}

    @abstractmethod
    def finish(self) -> Finished:
        """The compact model, the edits that lead to it, and the model that it must equal, all on the device
        of training; the session is over."""


class Method(ABC):
    """A configured method: `Alcn(initial_ratio=0.5)` or `Alcn(Alcn.Config(initial_ratio=0.5))`.

    A subclass names its frozen, JSON-able configuration dataclass as `Config` and says its `stage`; the
    `artifacts` that training with it is for, where it is not for any; and whether a trial trains with it
    `to_the_end`, as what it trains for would be lost in fine-tuning.

    Raises:
        SettingsError: a field is unknown or out of range.
    """

    Config: ClassVar[type[Any]]
    stage: ClassVar[Stage] = Stage.CHANNELS
    artifacts: ClassVar[tuple[str, ...] | None] = None
    to_the_end: ClassVar[bool] = False

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
            refuse_unknown(
                name, settings, [option.name for option in dataclasses.fields(self.Config) if option.init]
            )
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

    @classmethod
    def needs_graph(cls, model: nn.Module, analysis: Analysis) -> bool:
        """Whether this method leaves of a model its graph, which has its layers but not its class; cutting
        channels that the class's code does not fix the number of is no reason.

        Args:
            model: not changed.
            analysis: of the model.
        """
        return False

    @abstractmethod
    def start(self, model: nn.Module, task: Task) -> Session:
        """Begin to train a model.

        Args:
            model: prepared for training, in place; the session's `model` is what trains.
            task: whose inputs calibrate and whose recipe trains.

        Returns:
            The session.

        Raises:
            TrialError: the configuration does not fit the model.
        """
