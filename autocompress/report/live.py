"""A search that runs, on a terminal, in a log, in a notebook, or as lines of JSON."""

from __future__ import annotations

import html
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live

from autocompress.measure import Objective
from autocompress.report.progress import Progress, TrialBegin, TrialEnd
from autocompress.report.view import SearchView, end_text
from autocompress.trial import trial_name

# A notebook stores each picture that it is sent.
_NOTEBOOK_SECONDS = 1.0
_NOTEBOOK_WIDTH = 120


def shown_progress() -> Progress:
    """What shows a search where this process is: a table in a notebook, else standard error."""
    display = _notebook_display()
    return ConsoleProgress() if display is None else NotebookProgress(display)


class _Shown(Progress):
    """What all displays have in common: the view follows the events."""

    def __init__(self) -> None:
        self.view = SearchView()

    def search_begins(self, objectives: Sequence[Objective]) -> None:
        """Take note of which metrics to show."""
        self.view.objectives = tuple(objectives)

    def reference_epoch(self, epoch: int, epochs: int) -> None:
        """Move the reference's bar, if it trains."""
        if epochs:
            self.view.bar("reference", "training the reference", epoch, epochs)

    def trials_before(self, ends: Sequence[TrialEnd]) -> None:
        """Count trials of earlier calls."""
        for end in ends:
            self.view.before(end)

    def trials_begin(self, done: int, total: int) -> None:
        """Put up the bar of trials."""
        self.view.trials_begin(done, total)

    def trial_begin(self, begin: TrialBegin) -> None:
        """List a trial among those that run."""
        self.view.trial_begin(begin)

    def trial_epoch(self, number: int, epoch: int, epochs: int) -> None:
        """Move a trial."""
        self.view.trial_epoch(number, epoch)

    def epoch_log(self, number: int, values: Mapping[str, float]) -> None:
        """Show what a trial's last epoch logged."""
        self.view.log(number, values)

    def trial_end(self, end: TrialEnd) -> None:
        """Print a trial's metrics, with ratios to the reference, on a line."""
        self.view.trial_end(end)
        self.note(end_text(end, self.view.objectives))

    def final(self, done: int, total: int) -> None:
        """Move the bar of points that are measured once more, and take it down after the last."""
        self.view.bar("final", "measuring the front", done, total)


class ConsoleProgress(_Shown):
    """On a terminal a view that changes in place, under lines of what ended; in a log a line for each event.

    Args:
        console: where to print; None means standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console(stderr=True)
        self.live: Live | None = None
        if self.console.is_terminal:
            self.live = Live(
                get_renderable=lambda: self.view.render(self.console.height),
                console=self.console,
                transient=True,
                vertical_overflow="crop",
            )
            self.live.start()

    def note(self, text: str) -> None:
        """Print the line above the view."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def reference_epoch(self, epoch: int, epochs: int) -> None:
        """Move the reference's bar; in a log, say when it begins and when it has ended."""
        super().reference_epoch(epoch, epochs)
        if not epochs:
            self.note("measuring the reference, with the weights that it has")
        elif self.live is None and epoch in (0, epochs):
            self.note(f"{'training' if epoch == 0 else 'trained'} the reference, epochs: {epochs}")

    def trial_begin(self, begin: TrialBegin) -> None:
        """List the trial among those that run; in a log, print what it is going to do."""
        super().trial_begin(begin)
        if self.live is None:
            epochs = f", epochs: {begin.epochs}" if begin.epochs else ""
            self.note(f"trial {begin.number:>3}  from {trial_name(begin.parent)}: {begin.move}{epochs}")

    def final(self, done: int, total: int) -> None:
        """Move the bar of points that are measured once more; in a log, say how many there are."""
        super().final(done, total)
        if self.live is None and done == 0 and total:
            self.note(f"measuring the front: {total} models")

    def close(self) -> None:
        """Take the view down."""
        if self.live is not None:
            self.live.stop()


class NotebookProgress(_Shown):
    """In a notebook one output, which is replaced as the search goes on: what there is to say, and the view.

    Args:
        display: shows HTML in place of what it showed before.
    """

    def __init__(self, display: Callable[[str], None]) -> None:
        super().__init__()
        self.display = display
        self.lines: list[str] = []
        self.shown = -math.inf

    def note(self, text: str) -> None:
        """Add the line above the view."""
        self.lines.append(text)
        self._show()

    def reference_epoch(self, epoch: int, epochs: int) -> None:
        """Move the reference's bar."""
        super().reference_epoch(epoch, epochs)
        self._show()

    def trial_epoch(self, number: int, epoch: int, epochs: int) -> None:
        """Move a trial."""
        super().trial_epoch(number, epoch, epochs)
        self._show()

    def final(self, done: int, total: int) -> None:
        """Move the bar of points that are measured once more."""
        super().final(done, total)
        self._show()

    def close(self) -> None:
        """Show what there was to say, and the last view."""
        self._show(now=True)

    def _show(self, now: bool = False) -> None:
        if not now and time.monotonic() - self.shown < _NOTEBOOK_SECONDS:
            return
        self.shown = time.monotonic()
        # Rich would print into the notebook by itself.
        options: dict[str, Any] = {"force_terminal": True, "force_jupyter": False}
        console = Console(file=io.StringIO(), record=True, width=_NOTEBOOK_WIDTH, **options)
        console.print(self.view.render())
        view = console.export_html(inline_styles=True, code_format="{code}")
        said = html.escape("\n".join(self.lines))
        self.display(
            f'<pre style="white-space: pre-wrap">{said}</pre><pre style="line-height: 1.2">{view}</pre>'
        )


class JsonLinesProgress(Progress):
    """Each event as a JSON object on a line of its own, under "event" what it is.

    Args:
        stream: where to print; None means standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream

    def emit(self, event: str, **values: Any) -> None:
        """Print an event; numbers that JSON does not know are null."""
        print(json.dumps(_finite({"event": event, **values})), file=self.stream, flush=True)

    def search_begins(self, objectives: Sequence[Objective]) -> None:
        """Print `search`: the objectives."""
        self.emit("search", objectives=[asdict(objective) for objective in objectives])

    def note(self, text: str) -> None:
        """Print `note`: a line worth reading."""
        self.emit("note", text=text)

    def reference_epoch(self, epoch: int, epochs: int) -> None:
        """Print `reference_epoch`."""
        self.emit("reference_epoch", epoch=epoch, epochs=epochs)

    def trials_begin(self, done: int, total: int) -> None:
        """Print `trials`: how many of how many are done."""
        self.emit("trials", done=done, total=total)

    def trial_begin(self, begin: TrialBegin) -> None:
        """Print `trial_begin`."""
        self.emit("trial_begin", **asdict(begin))

    def trial_epoch(self, number: int, epoch: int, epochs: int) -> None:
        """Print `trial_epoch`."""
        self.emit("trial_epoch", number=number, epoch=epoch, epochs=epochs)

    def epoch_log(self, number: int, values: Mapping[str, float]) -> None:
        """Print `epoch_log`: what the epoch that is told of next logged."""
        self.emit("epoch_log", number=number, values=dict(values))

    def trial_end(self, end: TrialEnd) -> None:
        """Print `trial_end`."""
        self.emit("trial_end", **asdict(end))

    def final(self, done: int, total: int) -> None:
        """Print `final`: how many points of the front were measured once more."""
        self.emit("final", done=done, total=total)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _notebook_display() -> Callable[[str], None] | None:
    """Shows HTML in the output of the notebook's cell; None where this process is no notebook's."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import HTML, display

    if getattr(get_ipython(), "kernel", None) is None:
        return None
    handle = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))
