"""All that tells one trial from another, as JSON-able data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autocompress.errors import SettingsError


@dataclass(frozen=True)
class Stage:
    """One stage of a trial: a method and the fields of its `Config`."""

    method: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class TrialConfig:
    """All that tells one trial from another; JSON-able.

    Args:
        stages: compressors in order; none only trains the parent on.
        parent: number of the trial whose model this one starts from; 0 is the reference.
        epochs: of the whole trial; 0 compresses without training.
        compress_share: share of the epochs that train with compressors; the rest fine-tunes.
        lr_scale: factor on the recipe's learning rate.
        seed: of everything random in the trial.
        distill_weight: share of the loss that is learned from the teacher's outputs, in [0, 1].
        distill_temperature: of that part.
        teacher: number of the trial whose model that is; 0 is the reference. A task's own teacher stands for
            any of them.
        taken_over: number of the trial, of the run that was warm-started from, whose model this one starts
            from in place of a parent; 0 is none.
    """

    stages: tuple[Stage, ...] = ()
    parent: int = 0
    epochs: int = 10
    compress_share: float = 0.5
    lr_scale: float = 1.0
    seed: int = 0
    distill_weight: float = 0.0
    distill_temperature: float = 4.0
    teacher: int = 0
    taken_over: int = 0

    def __post_init__(self) -> None:
        for name in ("parent", "teacher", "taken_over"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} must be at least 0 but got {getattr(self, name)}.")
        if self.epochs < 0:
            raise SettingsError(f"epochs must be at least 0 but got {self.epochs}.")
        if not 0 < self.compress_share <= 1:
            raise SettingsError(f"compress_share must be in (0, 1] but got {self.compress_share}.")
        if not self.lr_scale > 0:
            raise SettingsError(f"lr_scale must be greater than 0 but got {self.lr_scale}.")
        if not 0 <= self.distill_weight <= 1:
            raise SettingsError(f"distill_weight must be in [0, 1] but got {self.distill_weight}.")
        if not self.distill_temperature > 0:
            raise SettingsError(
                f"distill_temperature must be greater than 0 but got {self.distill_temperature}."
            )

    def to_json(self) -> dict[str, Any]:
        """Turn the configuration into JSON-able data, which `from_json` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TrialConfig:
        """Read the configuration that `to_json` wrote.

        Raises:
            SettingsError: a value is out of range.
        """
        stages = tuple(Stage(s["method"], s["config"]) for s in data["stages"])
        return TrialConfig(**{**data, "stages": stages})
