"""Which digests of a run changed, and what people call the things that they stand for."""

from __future__ import annotations

from collections.abc import Mapping

# The entry of a run's identity that holds them.
DIGESTS = "digests"
# Kind of digest → what changed, and what must be the same; `{}` is what follows the kind's dot.
_NAMES = {
    "data": ("data of the {} split", "data"),
    "weights": ("the weights", "weights"),
    "loss": ("the loss", "loss"),
    "step": ("the training step", "step"),
    "optimizer": ("the optimizer", "optimizer"),
    "scheduler": ("the scheduler", "scheduler"),
    "teacher": ("the teacher", "teacher"),
    "prepare": ("the preparation", "prepare"),
    "metrics": ("the metric '{}'", "metrics"),
    "architecture": ("the model's architecture", "model"),
    "frozen": ("which parameters are frozen", "frozen parameters"),
    "model": ("the model's code", "model"),
    "latency_by": ("the function that measures latency", "latency_by"),
    "spaces": ("the search space '{}'", "search space"),
}


def changed(
    stored: Mapping[str, str | None], current: Mapping[str, str | None], *, spaces: bool = True
) -> list[tuple[str, str]]:
    """What changed, and what must be the same instead, in words.

    Args:
        stored: digests of the run.
        current: digests of now.
        spaces: whether search spaces count.
    """
    names = [name for name in {**current, **stored} if stored.get(name) != current.get(name)]
    kinds = [name.partition(".") for name in names]
    return [
        (_NAMES[kind][0].format(name), _NAMES[kind][1])
        for kind, _, name in kinds
        if spaces or kind != "spaces"
    ]
