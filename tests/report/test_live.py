"""What people see of a search while it runs."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from autocompress.measure import Objective
from autocompress.report import (
    ConsoleProgress,
    JsonLinesProgress,
    NotebookProgress,
    Progress,
    TrialBegin,
    TrialEnd,
)
from autocompress.report.view import SearchView

OBJECTIVES = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))
REFERENCE = {"accuracy": 0.98, "bytes": 200_000.0}


def _end(number: int, accuracy: float = 0.9, bytes: float = 100_000.0, **options: object) -> TrialEnd:
    metrics = {"accuracy": accuracy, "bytes": bytes}
    return TrialEnd(number, "complete", metrics, REFERENCE, **{"remark": "", **options})


def _fail(number: int, reason: str) -> TrialEnd:
    return TrialEnd(number, "fail", {}, REFERENCE, reason)


def _search(progress: Progress) -> None:
    """The events of a short search with one trial from before, one that fails and one beside the budget."""
    progress.search_begins(OBJECTIVES)
    progress.note("validation has 144 rows")
    for epoch in range(4):
        progress.reference_epoch(epoch, 3)
    progress.trials_before([_end(1)])
    progress.trials_begin(1, 4)
    progress.trial_begin(TrialBegin(2, 1, "alcn (initial_ratio 0.5)", 2))
    progress.trial_epoch(2, 0, 2)
    progress.epoch_log(2, {"loss": 0.25, "accuracy": float("nan")})
    progress.trial_epoch(2, 1, 2)
    progress.trial_end(_end(2, 0.95, 40_000.0, remark="on the front"))
    progress.trial_begin(TrialBegin(3, 2, "alcn", 2))
    progress.trial_end(_fail(3, "the training loss became nan in epoch 1"))
    progress.trial_begin(TrialBegin(4, 2, "lc (schemes * mixed bits 5)", 0))
    progress.trial_end(_end(4, 0.94, 8_000.0, extra=True))
    progress.final(0, 2)
    progress.final(2, 2)
    progress.close()


def _text(view: SearchView, height: int = 100) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(view.render(height))
    return console.file.getvalue()


@pytest.fixture
def view() -> SearchView:
    view = SearchView()
    view.objectives = OBJECTIVES
    view.trials_begin(0, 8)
    return view


def test_running_trials_are_listed_with_parent_move_epoch_and_what_the_last_epoch_logged(view) -> None:
    view.trial_begin(TrialBegin(5, 3, "alcn (initial_ratio 0.5), rate ×4", 10))
    view.trial_begin(TrialBegin(6, 0, "lc (schemes * mixed bits 5)", 0))
    view.log(5, {"loss": 0.2513, "kept": 0.61})
    view.trial_epoch(5, 4)
    lines = _text(view).splitlines()
    row = next(line for line in lines if "alcn" in line)
    for part in ("5", "trial 3", "4/10", "initial_ratio 0.5", "loss 0.251"):
        assert part in row
    coded = next(line for line in lines if "mixed" in line)
    assert "the reference" in coded
    assert "/" not in coded
    view.trial_end(_end(5))
    assert "alcn" not in _text(view)


def test_the_bar_of_trials_counts_epochs_of_running_trials_and_none_beside_the_budget(view) -> None:
    bar = view.bars.tasks[0]
    view.trial_begin(TrialBegin(1, 0, "alcn", 4))
    view.trial_epoch(1, 3)
    assert bar.completed == 0.75
    view.trial_end(_end(1))
    view.trial_end(_end(2, extra=True))
    assert bar.completed == 1
    assert "1/8" in _text(view)


def test_failures_are_counted_by_reason(view) -> None:
    for number in (1, 2):
        view.trial_end(_fail(number, "out of memory"))
    view.trial_end(_fail(3, "the loss became nan"))
    assert "failed: 2 × out of memory; 1 × the loss became nan" in _text(view)


def test_the_scatter_marks_the_front_among_models_within_bounds(view) -> None:
    assert view.scatter() is None
    ends = [_end(1, 0.95, 100_000.0), _end(2, 0.90, 20_000.0), _end(3, 0.85, 60_000.0)]
    for end in [*ends, _end(4, 0.99, 10_000.0, feasible=False), _fail(5, "x")]:
        view.trial_end(end)
    picture = view.scatter()
    body = picture.split("\n", 1)[1]
    assert body.count("●") == 2
    assert body.count("·") == 2
    assert "0.05×" in picture
    assert "0.5×" in picture
    assert "file bytes" in picture
    rows = [line for line in body.splitlines() if "●" in line]
    # Dearer and better is to the right of and above cheaper and worse.
    assert rows[0].index("●") > rows[1].index("●")


def test_models_far_below_the_others_do_not_press_the_scatter_into_a_row(view) -> None:
    for end in (_end(1, 0.95, 100_000.0), _end(2, 0.93, 20_000.0), _end(3, 0.94, 60_000.0)):
        view.trial_end(end)
    for number in (4, 5):
        view.trial_end(_end(number, 0.1, 50_000.0, feasible=False))
    legend, *rows = view.scatter().splitlines()
    assert legend == " accuracy; ● on the front, · others; 2 lie below"
    held = [number for number, row in enumerate(rows) if "●" in row]
    assert held[-1] - held[0] >= 5


def test_without_a_cost_and_a_score_there_is_no_scatter(view) -> None:
    view.objectives = (Objective("accuracy", "maximize"),)
    for number in range(1, 5):
        view.trial_end(_end(number))
    assert view.scatter() is None


def test_the_scatter_gives_way_to_running_trials_on_a_small_terminal(view) -> None:
    for number in range(1, 5):
        view.trial_end(_end(number, 0.9 + number / 100, 1e4 * number))
    assert "●" in _text(view, height=30)
    small = _text(view, height=10)
    assert "●" not in small
    assert "trials" in small


def test_a_log_has_a_line_for_each_event_and_none_for_an_epoch() -> None:
    stream = io.StringIO()
    _search(ConsoleProgress(Console(file=stream, width=60)))
    assert stream.getvalue().splitlines() == [
        "validation has 144 rows",
        "training the reference, epochs: 3",
        "trained the reference, epochs: 3",
        "trial   2  from trial 1: alcn (initial_ratio 0.5), epochs: 2",
        "trial   2  accuracy 0.9500  bytes 40 kB (0.20×)  on the front",
        "trial   3  from trial 2: alcn, epochs: 2",
        "trial   3  FAIL  the training loss became nan in epoch 1",
        "trial   4  from trial 2: lc (schemes * mixed bits 5)",
        "trial   4  accuracy 0.9400  bytes 8 kB (0.04×)",
        "measuring the front: 2 models",
    ]


def test_a_terminal_shows_the_view_and_takes_it_down() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, height=40, force_terminal=True, legacy_windows=False)
    progress = ConsoleProgress(console)
    progress.search_begins(OBJECTIVES)
    progress.trials_begin(0, 4)
    progress.trial_begin(TrialBegin(1, 0, "alcn (initial_ratio 0.5)", 2))
    progress.live.refresh()
    assert "alcn (initial_ratio 0.5)" in stream.getvalue()
    progress.close()
    assert not progress.live.is_started


def test_a_notebook_gets_one_output_that_is_replaced() -> None:
    shown: list[str] = []
    _search(NotebookProgress(shown.append))
    last = shown[-1]
    assert "trial   2  accuracy 0.9500" in last
    assert "validation has 144 rows" in last
    assert "failed: 1 × the training loss" in last
    # A search of a second shows its first and its last state.
    assert len(shown) < 5


def test_what_a_notebook_shows_is_escaped() -> None:
    shown: list[str] = []
    progress = NotebookProgress(shown.append)
    progress.note("<script>alert(1)</script>")
    progress.close()
    assert "<script>" not in shown[-1]
    assert "&lt;script&gt;" in shown[-1]


def test_json_lines_are_events_that_any_parser_reads() -> None:
    stream = io.StringIO()
    _search(JsonLinesProgress(stream))
    events = [json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events][:3] == ["search", "note", "reference_epoch"]
    assert {"event": "epoch_log", "number": 2, "values": {"loss": 0.25, "accuracy": None}} in events
    ends = [event for event in events if event["event"] == "trial_end"]
    assert [end["state"] for end in ends] == ["complete", "fail", "complete"]
    assert ends[1]["remark"] == "the training loss became nan in epoch 1"
