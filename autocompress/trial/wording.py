"""What a trial does, in words: for the terminal, the report, the dashboard and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from typing import Any

from autocompress import plugins
from autocompress.errors import SettingsError
from autocompress.trial.config import Stage, TrialConfig


def move_text(config: TrialConfig) -> str:
    """What a trial does to its parent, in a few words: "alcn (initial_ratio 0.57), rate ×4".

    Args:
        config: of the trial.
    """
    if config.taken_over:
        return f"taken over from trial {config.taken_over} of the other run"
    stages = [stage_text(stage) for stage in config.stages] or ["trained on"]
    parts = [", then ".join(stages)]
    if config.epochs and config.lr_scale != 1:
        parts.append(f"rate ×{config.lr_scale:.3g}")
    if config.epochs and config.distill_weight:
        parts.append(f"taught by {trial_name(config.teacher)}")
    return ", ".join(parts)


def stage_text(stage: Stage) -> str:
    """A stage's method and which of its settings are not the defaults."""
    settings = changed_settings(stage.method, stage.config)
    changed = ", ".join(f"{name} {_value_text(value)}" for name, value in settings.items())
    return f"{stage.method} ({changed})" if changed else stage.method


def changed_settings(method: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method that are not its defaults; all where the method is not installed any more."""
    try:
        known = plugins.compressors().get(method)
    except SettingsError:
        known = None
    defaults = {} if known is None else {field.name: _default(field) for field in fields(known.Config)}
    return {
        name: value
        for name, value in config.items()
        if name not in defaults or _plain(value) != _plain(defaults[name])
    }


def trial_name(number: int) -> str:
    """What people call a trial: trial 0 is the reference."""
    return "the reference" if number == 0 else f"trial {number}"


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _plain(value: Any) -> Any:
    """Settings read from JSON have lists and mappings where configurations have tuples and classes."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _value_text(value: Any) -> str:
    """Numbers to three digits, what is in a mapping, and of long lists of numbers how many there are."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return " ".join(_entry_text(name, item) for name, item in value.items() if item is not False)
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(item, (int, float)) for item in value)
        return f"of {len(value)}" if len(value) > 2 and numbers else " and ".join(map(_value_text, value))
    return str(value)


def _entry_text(name: str, value: Any) -> str:
    """Only numbers need their names: what `{"kind": "codebook", "k": 4}` says is "codebook k 4"."""
    return f"{name} {_value_text(value)}" if isinstance(value, (int, float)) else _value_text(value)
