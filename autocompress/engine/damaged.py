"""Checkpoints that changed on the disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.store import trial_folder
from autocompress.errors import CheckpointError, one_line
from autocompress.study import SearchStudy


def set_damaged_aside(trials: Path, numbers: Iterable[int], study: SearchStudy) -> dict[int, str]:
    """Take trials whose checkpoints are damaged off the front, and rename these to `damaged-0007`, so that no
    trial starts from one; `replay` makes them again.

    Args:
        trials: folder of the checkpoints.
        numbers: of the trials to look at.
        study: of the run.

    Returns:
        What is wrong with each that is damaged.
    """
    reasons: dict[int, str] = {}
    for number in numbers:
        folder = trial_folder(trials, number)
        try:
            open_checkpoint(folder)
        except CheckpointError as error:
            reasons[number] = one_line(error)
            if folder.is_dir():
                folder.rename(folder.with_name(f"damaged-{folder.name}"))
    if reasons:
        study.drop(reasons)
    return reasons
