"""Fronts as tables, on terminals of any width and without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autocompress.measure import Objective
from autocompress.result import ParetoModel, SearchResult, ratios
from autocompress.tables import front_table, plain_text, table_width

BASE = {"accuracy": 0.98, "f1": 0.9, "bytes": 2e5, "weight_bytes": 1.9e5, "params": 5e4, "macs": 3e5}


def point(trial: int, share: float) -> ParetoModel:
    metrics = {name: value * share for name, value in BASE.items()} | {"accuracy": 0.97, "f1": 0.91}
    path = Path("runs/mine") / f"trials/{trial:04d}"
    errors = {"accuracy": 0.0133, "f1": 0.02}
    return ParetoModel(trial, path, metrics, {"accuracy": 0.96}, {}, ratios(metrics, BASE), errors)


@pytest.fixture
def searched() -> SearchResult:
    objectives = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))
    front = [replace(point(trial, 0.5 / trial), front_probability=0.5) for trial in (31, 32)]
    return SearchResult(Path("runs/mine"), objectives, point(0, 1.0), front, None)


@pytest.mark.parametrize("width", [160, 130, 100, 80, 60, 40])
def test_a_front_fits_a_terminal_and_nothing_is_cut(searched: SearchResult, width: int) -> None:
    table = front_table(searched, searched.front[0], width=width)
    assert table_width(table) <= width
    text = plain_text(table, width)
    assert "…" not in text
    marked = next(line for line in text.splitlines() if "knee 31" in line)
    assert "0.9700" in marked
    assert "0.016" in marked  # of the bytes, over the reference's


def test_what_matters_least_is_left_out_first(searched: SearchResult) -> None:
    # MACs, standard errors, probabilities, the test split, the file's size.
    marks = ("4.69 k", "±0.0133", "50%", "test", "3.12 kB", "0.016")
    texts = [plain_text(front_table(searched, width=width), width) for width in range(160, 35, -5)]
    kept = [[mark in text for mark in marks] for text in texts]
    assert kept[0] == [True] * 6
    assert kept[-1] == [False] * 5 + [True]
    assert all(each == sorted(each) for each in kept)
    assert [sum(each) for each in kept] == sorted((sum(each) for each in kept), reverse=True)
    told = ["a wider terminal shows more columns" in text for text in texts]
    assert told == [text.splitlines()[3] != texts[0].splitlines()[3] for text in texts]


def test_a_pipe_gets_all_columns_however_many_without_trailing_blanks(searched: SearchResult) -> None:
    many = {f"a_metric_of_the_task_{n}": 0.5 for n in range(9)}
    points = [replace(p, metrics=many | dict(p.metrics)) for p in (searched.reference, *searched.front)]
    wide = replace(searched, reference=points[0], front=points[1:])
    text = plain_text(front_table(wide))
    assert all(name in text for name in many)
    assert "…" not in text
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_names_with_brackets_are_no_markup(searched: SearchResult) -> None:
    assert "front of runs/[bold]x" in plain_text(front_table(replace(searched, out=Path("runs/[bold]x"))))
