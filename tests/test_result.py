"""Fronts, knees and picks against definitions by brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from autocompress.errors import SettingsError
from autocompress.measure import Constraint, Objective
from autocompress.measure.resampling import REPLICATES
from autocompress.pareto import front_probabilities, knee, non_dominated
from autocompress.result import ParetoModel, SearchResult, ratios


def brute_force_front(costs: np.ndarray) -> set[int]:
    return {i for i, a in enumerate(costs) if not any((b <= a).all() and (b < a).any() for b in costs)}


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_non_dominated_equals_brute_force(dimensions: int) -> None:
    costs = np.random.default_rng(dimensions).random((60, dimensions))
    assert set(non_dominated(costs.tolist())) == brute_force_front(costs)


def test_equal_points_are_kept_once() -> None:
    assert non_dominated([[1, 2], [1, 2], [2, 1]]) == [0, 2]


def test_fronts_under_replicates_equal_brute_force() -> None:
    drawn = np.random.default_rng(0).random((12, 40, 2))
    fronts = [brute_force_front(drawn[:, resample]) for resample in range(40)]
    expected = [sum(point in front for front in fronts) / 40 for point in range(12)]
    assert front_probabilities(drawn[:, 0], drawn).tolist() == pytest.approx(expected)


def test_knee_is_the_bend_of_a_front() -> None:
    costs = np.array([[0.0, 1.0], [0.1, 0.2], [0.5, 0.15], [1.0, 0.0]])
    assert knee(costs) == 1
    assert knee(np.array([[3.0, 3.0]])) == 0


def test_ratios_leave_out_what_is_zero_in_the_reference() -> None:
    assert ratios({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 4.0, "b": 0.0}) == {"a": 0.25}


def result() -> SearchResult:
    def point(trial: int, accuracy: float, size: float, latency: float) -> ParetoModel:
        metrics = {"accuracy": accuracy, "bytes": size, "latency": latency}
        base = {"accuracy": 0.9, "bytes": 100.0, "latency": 10.0}
        return ParetoModel(trial, Path(f"run/trials/{trial}"), metrics, {}, {}, ratios(metrics, base))

    front = [point(1, 0.9, 60, 9), point(2, 0.893, 20, 5), point(3, 0.7, 10, 2)]
    objectives = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))
    return SearchResult(Path("run"), objectives, point(0, 0.9, 100, 10), front, None)


def test_picks_by_need() -> None:
    searched = result()
    assert searched.pick("knee").trial == 2
    assert searched.pick("max-drop", max_drop=0.0).trial == 1
    assert searched.pick("max-drop", max_drop=0.01).trial == 2
    assert searched.pick("max-drop", max_drop=0.5).trial == 3
    assert searched.pick(max_drop=0.5).trial == 3
    assert searched.pick(tau=1.0).trial == searched.pick("tau", tau=1.0).trial == 1
    assert searched.pick("tau", tau=0.0).trial == 3
    assert searched.pick("knee", budgets={"latency": 4}).trial == 3
    assert searched.pick("max-drop", max_drop=0.5, budgets={"latency": 6}).trial == 3


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("best", {}, "rule must be 'knee', 'max-drop', 'tau' or 'target' but got 'best'"),
        ("max-drop", {}, "max_drop must be at least 0 but got None"),
        ("max-drop", {"max_drop": -1}, "max_drop must be at least 0 but got -1"),
        ("tau", {"tau": 2}, r"tau must be in \[0, 1\] but got 2"),
        (None, {"tau": 0.5, "max_drop": 0.1}, "only one of max_drop and tau"),
        (
            "knee",
            {"max_drop": 0.0},
            "max_drop must be given with the rule 'max-drop' alone but that is 'knee'",
        ),
        ("target", {"tau": 0.5}, "tau must be given with the rule 'tau' alone but that is 'target'"),
        ("tau", {"max_drop": 0.0}, "max_drop must be given with the rule 'max-drop' alone but that is 'tau'"),
        ("knee", {"budgets": {"bytes": 1}}, "the smallest bytes there is 10 B, of trial 3, and got 1 B"),
        ("knee", {"budgets": {"bytes": 9.9999}}, "there is 10, of trial 3, and got 9.9999"),
        ("knee", {"budgets": {"bytes": math.nan}}, "the smallest bytes there is 10 B"),
        ("knee", {"budgets": {"bytes": 15, "accuracy": 0.69}}, "the smallest accuracy there is 0.7000"),
        (
            "knee",
            {"budgets": {"speed": 1}},
            r"must be on measured metrics \(accuracy, .*\) but got 'speed'\.$",
        ),
        ("knee", {"budgets": {"memory": 1}}, "'memory'; a search with --objectives accuracy,memory measures"),
    ],
)
def test_impossible_picks_are_refused(rule: str | None, options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        result().pick(rule, **options)


def test_max_drop_that_no_point_meets_is_refused() -> None:
    searched = result()
    only = SearchResult(searched.out, searched.objectives, searched.reference, searched.front[2:], None)
    with pytest.raises(SettingsError, match=r"no point is within 0\.01"):
        only.pick("max-drop", max_drop=0.01)


def paired(point: ParetoModel, differing_rows: int, seed: int, rows: int = 1000) -> ParetoModel:
    """A point whose accuracy differs on some rows, each way, from that of a model right on 90 % of all."""
    weights = np.random.default_rng(0).poisson(1, (REPLICATES, rows))
    right = np.arange(rows) < 0.9 * rows
    flipped = right.copy()
    flipped[np.random.default_rng(seed).choice(rows, differing_rows, replace=False)] ^= True
    drawn = (weights @ flipped) / weights.sum(1)
    metrics = {**point.metrics, "accuracy": float(flipped.mean())}
    return replace(point, metrics=metrics, replicates={"accuracy": drawn.tolist()}, validation_rows=rows)


def test_a_sure_pick_holds_the_drop_with_its_error() -> None:
    searched = result()
    reference = paired(searched.reference, 0, 0)
    front = [paired(point, rows, 1) for point, rows in zip(searched.front, (0, 10, 100), strict=True)]
    known = replace(searched, reference=reference, front=front)
    # Rows on which two models differ: 10 of 1,000 are an error of 0.0032, 100 of 0.01.
    assert known.pick(max_drop=0.01).trial == 2
    assert known.pick(max_drop=0.01, sure=True).trial == 1
    assert known.pick(max_drop=0.016, sure=True).trial == 2
    # No row differs: a bound of 3/n, not of 0.
    assert known.pick(max_drop=0.0031, sure=True).trial == 1
    with pytest.raises(SettingsError, match=r"no point is within 0\.0029 .* on 1000 validation rows"):
        known.pick(max_drop=0.0029, sure=True)
    with pytest.raises(SettingsError, match="sure must be given with max_drop alone"):
        known.pick("knee", sure=True)


def test_nothing_is_sure_where_no_replicates_are_known_but_the_reference() -> None:
    searched = result()
    with pytest.raises(SettingsError, match="with 95 % certainty"):
        searched.pick(max_drop=0.5, sure=True)
    assert (
        replace(searched, front=[searched.reference, *searched.front]).pick(max_drop=0, sure=True).trial == 0
    )


def test_intervals_are_values_with_1_96_standard_errors() -> None:
    point = replace(result().front[0], errors={"accuracy": 0.01})
    assert point.interval("accuracy") == pytest.approx((0.8804, 0.9196))
    assert np.isnan(point.interval("bytes")).all()
    assert replace(point, errors={"accuracy": 0.2}).interval("accuracy") == pytest.approx(
        (0.508, 1.0), abs=1e-4
    )


def test_csv_has_the_reference_and_each_point() -> None:
    lines = result().to_csv().splitlines()
    assert lines[0] == (
        "trial,path,accuracy,bytes,latency,ratio_accuracy,ratio_bytes,ratio_latency,front_probability"
    )
    assert lines[1] == "0,trials/0,0.9,100,10,1.0,1.0,1.0,"
    assert lines[2].startswith("1,trials/1,0.9,60,9,1.0,0.6,0.9,")
    assert len(lines) == 5


def test_other_objectives_that_are_maximised_are_not_costs() -> None:
    searched = result()
    f1 = {1: 0.95, 2: 0.5, 3: 0.4}
    front = [
        replace(p, metrics={**p.metrics, "f1": f1[p.trial]}, ratios={"f1": f1[p.trial] / 0.9})
        for p in searched.front
    ]
    objectives = (Objective("accuracy", "maximize"), Objective("f1", "maximize"))
    both = replace(searched, objectives=objectives, front=front)
    assert both.pick("max-drop", max_drop=0.5).trial == 1


def test_the_reference_is_no_knee_unless_alone() -> None:
    searched = result()
    with_reference = replace(searched, front=[searched.reference, *searched.front[1:]])
    assert with_reference.pick("knee").trial in (2, 3)
    assert replace(searched, front=[searched.reference]).pick("knee").trial == 0


def test_budgets_that_each_point_breaks_one_of_are_refused_together() -> None:
    searched = result()
    slow = replace(searched.front[2], metrics={**searched.front[2].metrics, "latency": 9.5})
    apart = replace(searched, front=[*searched.front[:2], slow])
    with pytest.raises(SettingsError, match="none holds bytes<=15 B and latency<=5 ms"):
        apart.pick(budgets={"bytes": 15, "latency": 5})
    empty = replace(searched, front=[])
    with pytest.raises(SettingsError, match=r"^a point must be on the front .* each breaks a constraint"):
        empty.pick()


def test_where_no_trial_completed_that_is_why_there_is_no_point() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trial(optuna.trial.create_trial(values=[0.9, 100.0]))
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    failed = replace(result(), front=[], study=study)
    with pytest.raises(SettingsError, match=r"^a point must be on the front .* no trial completed"):
        failed.pick(max_drop=0.1)
    assert "no trial completed" in repr(failed)
    study.add_trial(optuna.trial.create_trial(values=[0.1, 100.0]))
    assert "each breaks a constraint" in repr(failed)


def test_what_tables_mark_is_the_knee_and_never_the_reference() -> None:
    searched = result()
    assert searched.marked == (searched.front[1], "knee")
    holds = Constraint.parse("accuracy>=0.69", dict.fromkeys(searched.reference.metrics, ""), "target")
    assert replace(searched, target=holds).marked == (searched.front[2], "target")
    assert replace(searched, front=[searched.reference]).marked == (None, "")


def test_printing_a_result_gives_its_front_and_a_point_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = repr(result()).splitlines()
    assert lines[0] == "Pareto front of run"
    rows = [line.split() for line in lines]
    assert ["knee", "2", "0.8930", "-", "nan%", "20", "B", "0.200", "5", "ms", "0.500"] in rows
    assert not any(line.endswith(" ") for line in lines)
    assert repr(result().front[1]) == (
        "trial 2: accuracy 0.8930, bytes 20 B (0.200×), latency 5 ms (0.500×); run/trials/2"
    )
    assert "no compressed model is on the front" in repr(replace(result(), front=[]))


def test_a_notebook_shows_small_tables_of_text() -> None:
    searched = replace(result(), out=Path("<b>run"))
    table = searched._repr_html_()
    assert "<caption>Pareto front of &lt;b&gt;run</caption>" in table
    assert table.count("<tr") == 5
    assert "<td>20 B (0.200×)</td>" in table
    assert "<td>0.200×</td>" in searched.front[1]._repr_html_()
    assert "no compressed model" in replace(searched, front=[])._repr_html_()
