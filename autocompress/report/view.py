"""The state of a search that runs, as something to look at: bars, running trials, the front, failures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text
from uniplot import plot_to_string

from autocompress.measure import Objective
from autocompress.pareto import non_dominated
from autocompress.report.progress import TrialBegin, TrialEnd
from autocompress.report.reach import outside_text, reach
from autocompress.tables import HEADINGS, SIZES, metric_text
from autocompress.trial import trial_name

# Trials take from seconds to hours; the remaining time goes by all of them that ended in the last week.
_SPEED_SECONDS = 7 * 24 * 3600.0
# Of the scatter, in characters; less than that shows no shape.
_SCATTER_WIDTH, _SCATTER_HEIGHT = 48, 8
_LEAST_POINTS = 3


@dataclass
class _Running:
    """A trial that trains now, with what its last epoch logged."""

    begin: TrialBegin
    epoch: int = 0
    values: Mapping[str, float] = field(default_factory=dict)


class SearchView:
    """What there is to see of a running search; events change it, `render` shows it as it is."""

    def __init__(self) -> None:
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            auto_refresh=False,
            speed_estimate_period=_SPEED_SECONDS,
        )
        self.tasks: dict[str, TaskID] = {}
        self.objectives: tuple[Objective, ...] = ()
        self.running: dict[int, _Running] = {}
        self.ends: list[TrialEnd] = []
        self.failures: Counter[str] = Counter()
        self.done = self.total = 0

    def bar(self, key: str, text: str, done: float, total: int) -> None:
        """Put up a bar or move it; take it down once all is done."""
        count = f"{math.floor(done)}/{total}"
        if key not in self.tasks:
            self.tasks[key] = self.bars.add_task(text, total=total, count=count)
        self.bars.update(self.tasks[key], completed=done, count=count)
        if done >= total:
            self.bars.remove_task(self.tasks.pop(key))

    def trials_begin(self, done: int, total: int) -> None:
        """Put up the bar of trials."""
        self.done, self.total = done, total
        self._move_trials()

    def trial_begin(self, begin: TrialBegin) -> None:
        """List a trial among those that run."""
        self.running[begin.number] = _Running(begin)

    def trial_epoch(self, number: int, epoch: int) -> None:
        """Move a trial, and with it the bar of trials, by an epoch."""
        if number in self.running:
            self.running[number].epoch = epoch
            self._move_trials()

    def log(self, number: int, values: Mapping[str, float]) -> None:
        """Keep what a trial's last epoch logged."""
        if number in self.running:
            self.running[number].values = values

    def trial_end(self, end: TrialEnd) -> None:
        """Take a trial off those that run, and count it."""
        self.running.pop(end.number, None)
        self.before(end)
        if not end.extra:
            self.done += 1
        self._move_trials()

    def before(self, end: TrialEnd) -> None:
        """Count a trial, which may have ended in an earlier call."""
        self.ends.append(end)
        if end.state == "fail":
            self.failures[end.remark] += 1

    def render(self, height: int = 100) -> RenderableType:
        """All of it, in no more than so many lines where the front's picture can be left out for that."""
        parts: list[RenderableType] = [self.bars]
        lines = len(self.tasks)
        if self.running:
            parts.append(self._running_table())
            lines += len(self.running) + 2
        if self.failures:
            parts.append(Text(self._failures(), style="red", overflow="ellipsis", no_wrap=True))
            lines += 1
        front = self.scatter()
        if front is not None and lines + _SCATTER_HEIGHT + 4 <= height:
            parts.append(Text(front))
        return Group(*parts)

    def scatter(self) -> str | None:
        """The models so far, by the first cost relative to the reference's and the first score.

        ● is the front, in these two, of the models within bounds; · are others. None where there are too few
        models, or where the search has not both a cost and a score.
        """
        pair = self._pair()
        if pair is None:
            return None
        cost, score = pair
        held = [end for end in self.ends if end.state == "complete" and _positive(end, cost.metric)]
        within = [end for end in held if end.feasible]
        if len(held) < _LEAST_POINTS or not within:
            return None
        held, outside = _near(held, within, score.metric, cost.metric)
        signs = [-1.0 if objective.maximised else 1.0 for objective in pair]
        costs = [[s * end.metrics[o.metric] for o, s in zip(pair, signs, strict=True)] for end in within]
        front = [within[i] for i in non_dominated(costs)]
        numbers = {end.number for end in front}
        others = [end for end in held if end.number not in numbers]
        series = [others, front] if others else [front]
        ratios = [[end.metrics[cost.metric] / end.reference[cost.metric] for end in ends] for ends in series]
        least, most = min(map(min, ratios)), max(map(max, ratios))
        picture = plot_to_string(
            [[end.metrics[score.metric] for end in ends] for ends in series],
            [[math.log(ratio) for ratio in of] for of in ratios],
            width=_SCATTER_WIDTH,
            height=_SCATTER_HEIGHT,
            character_set="ascii",
            force_ascii_characters=["·", "●"][-len(series) :],
            color=False,
            x_labels=False,
            x_gridlines=[],
            y_gridlines=[],
        )
        name, left, right = HEADINGS.get(cost.metric, cost.metric), f" {least:.2g}×", f"{most:.2g}×"
        middle = f"{name} of the reference's".center(_SCATTER_WIDTH - len(left) - len(right))
        legend = f"{score.metric}; ● on the front, · others{outside}"
        return f" {legend}\n{picture.strip(chr(10))}\n{left}{middle}{right}"

    def _pair(self) -> tuple[Objective, Objective] | None:
        """The first objectives that are a cost and a score."""
        cost = next((o for o in self.objectives if o.metric in SIZES), None)
        score = next((o for o in self.objectives if o.metric not in SIZES), None)
        return None if cost is None or score is None else (cost, score)

    def _move_trials(self) -> None:
        if self.total:
            trained = sum(r.epoch / r.begin.epochs for r in self.running.values() if r.begin.epochs)
            self.bar("trials", "trials", min(self.done + trained, self.total), self.total)

    def _running_table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        for heading, width in (("trial", 5), ("from", 13), ("epoch", 7)):
            table.add_column(heading, justify="right", no_wrap=True, width=width)
        table.add_column("move", ratio=2, no_wrap=True, overflow="ellipsis")
        table.add_column("last epoch", ratio=1, no_wrap=True, overflow="ellipsis")
        for number, running in sorted(self.running.items()):
            begin = running.begin
            values = ", ".join(f"{name} {value:.3g}" for name, value in running.values.items())
            epoch = f"{running.epoch}/{begin.epochs}" if begin.epochs else "-"
            table.add_row(str(number), trial_name(begin.parent), epoch, begin.move, values)
        return table

    def _failures(self) -> str:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in self.failures.most_common())
        return f"failed: {reasons}"


def _near(
    held: Sequence[TrialEnd], within: Sequence[TrialEnd], score: str, cost: str
) -> tuple[list[TrialEnd], str]:
    """The trials that do not lie far from those within bounds, and in words how many others lie where."""
    counts = dict.fromkeys(("below", "above", "to the left", "to the right"), 0)
    heights = [end.metrics[score] for end in held], [end.metrics[score] for end in within]
    ratios = [[math.log(end.metrics[cost] / end.reference[cost]) for end in ends] for ends in (held, within)]
    bottom, top = reach(heights[1], heights[0])
    left, right = reach(ratios[1], ratios[0])
    near = []
    for end, height, ratio in zip(held, heights[0], ratios[0], strict=True):
        if not bottom <= height <= top:
            counts["below" if height < bottom else "above"] += 1
        elif not left <= ratio <= right:
            counts["to the left" if ratio < left else "to the right"] += 1
        else:
            near.append(end)
    text = outside_text(counts, "")
    return near, f"; {text}" * bool(text)


def _positive(end: TrialEnd, cost: str) -> bool:
    """Whether a cost has a logarithm, relative to the reference's."""
    return end.metrics.get(cost, 0.0) > 0 and end.reference.get(cost, 0.0) > 0


def end_text(end: TrialEnd, objectives: Sequence[Objective]) -> str:
    """How a trial ended, in a line: its metrics, with ratios to the reference, and a remark."""
    parts = [f"trial {end.number:>3}"]
    for name in (objective.metric for objective in objectives):
        if name in end.metrics:
            text = f"{name} {metric_text(name, end.metrics[name])}"
            if name in SIZES and end.reference.get(name):
                text += f" ({end.metrics[name] / end.reference[name]:.2f}×)"
            parts.append(text)
    if end.state != "complete":
        parts.append(end.state.upper())
    if end.remark:
        parts.append(end.remark)
    return "  ".join(parts)


__all__ = ["SearchView", "end_text"]
