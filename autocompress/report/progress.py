"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Receives the events of a search; `Silent` ignores them all."""

    def note(self, text: str) -> None:
        """A line worth reading."""
        ...

    def reference_epoch(self, epoch: int, epochs: int) -> None: ...

    def trials_begin(self, done: int, total: int) -> None: ...

    def trial_epoch(self, number: int, epoch: int, epochs: int) -> None: ...

    def trial_end(
        self,
        number: int,
        state: str,
        metrics: Mapping[str, float],
        reference: Mapping[str, float],
        remark: str,
    ) -> None:
        """A trial ended as "complete", "pruned" or "fail"; `remark` says what else there is."""
        ...

    def close(self) -> None:
        """The search ended; take the live display down."""
        ...


class Silent:
    """No display."""

    def note(self, text: str) -> None:
        return None

    def reference_epoch(self, epoch: int, epochs: int) -> None:
        return None

    def trials_begin(self, done: int, total: int) -> None:
        return None

    def trial_epoch(self, number: int, epoch: int, epochs: int) -> None:
        return None

    def trial_end(
        self,
        number: int,
        state: str,
        metrics: Mapping[str, float],
        reference: Mapping[str, float],
        remark: str,
    ) -> None:
        return None

    def close(self) -> None:
        return None
