"""The models that trials start from, by study and checkpoints, in real searches."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.engine.family import FamilyTree, _front, stored_as_codes
from autocompress.engine.prepare import prepare
from autocompress.engine.settings import Settings
from autocompress.lineage import Parent
from autocompress.measure import Constraint, Objective
from autocompress.pareto import non_dominated
from autocompress.study import SearchStudy, sqlite_url
from autocompress.task import ModelProfile

pytestmark = pytest.mark.usefixtures("shared_ray")


def configs(result: ac.SearchResult) -> dict[int, dict[str, object]]:
    complete = [t for t in result.study.trials if t.number and t.state.name == "COMPLETE"]
    return {trial.number: trial.user_attrs["details"]["config"] for trial in complete}


def test_a_bound_on_cost_is_reached_over_models_that_are_too_costly_yet(tmp_path: Path) -> None:
    options = {"objectives": ["accuracy", "macs"], "constraints": ["macs<=0.3*ref", "accuracy>=0.5*ref"]}
    result = ac.search(
        "digits", trials=5, epochs=3, workers=1, methods=["alcn"], out=tmp_path / "run", **options
    )
    by_number = configs(result)
    assert [by_number[number]["parent"] for number in sorted(by_number)][:2] == [0, 1]
    assert result.study.trials[1].user_attrs["metrics"]["macs"] > 0.3 * result.reference.metrics["macs"]
    assert any(point.trial and point.ratios["macs"] <= 0.3 for point in result.front)
    assert all(point.ratios["macs"] <= 0.3 for point in result.front)


def test_methods_that_store_weights_end_a_line() -> None:
    assert stored_as_codes(["alcn", "lc"])
    assert not stored_as_codes(["alcn", "alds"])
    assert not stored_as_codes([])


BASE = {"accuracy": 0.9, "macs": 100.0, "bytes": 100.0, "weight_bytes": 90.0}


def recorded(task: ac.Task, folder: Path) -> tuple[SearchStudy, FamilyTree]:
    """A study of the reference alone, and its family."""
    prepared = prepare(task, Settings(methods=("alcn",), objectives=("accuracy", "macs")))
    study = SearchStudy(sqlite_url(folder), "test", prepared.objectives)
    study.add_reference(BASE, {"config": {}})
    return study, FamilyTree(study, folder / "trials", prepared.objectives, (), BASE, prepared.profile)


@pytest.mark.parametrize(
    ("objective", "limits", "margin"),
    [
        ("accuracy", ["accuracy>=0.9*ref", "accuracy>=ref-0.2", "macs<=0.5*ref"], 0.09),
        ("accuracy", ["loss<=2*ref", "accuracy|f1>=0.8*ref"], math.inf),
        ("loss", ["loss<=1.5*ref"], 0.2),
    ],
)
def test_the_margin_is_what_bounds_let_scores_lose(
    tmp_path: Path, objective: str, limits: list[str], margin: float
) -> None:
    known = {"accuracy": "maximize", "f1": "maximize", "loss": "minimize", "macs": "minimize"}
    constraints = [Constraint.parse(text, known) for text in limits]
    objectives = [Objective(objective, known[objective]), Objective("macs", "minimize")]
    study = SearchStudy(sqlite_url(tmp_path), "test", objectives)
    base = BASE | {"loss": 0.4}
    tree = FamilyTree(study, tmp_path / "trials", objectives, constraints, base, ModelProfile(1, 1, ()))
    assert tree.family((), (), 3).margin == pytest.approx(margin)


def test_a_trial_that_was_stopped_early_is_no_model_to_start_from(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    study, tree = recorded(residual_task, tmp_path)
    number = study.ask().number
    stage = {"method": "alcn", "config": {}}
    metrics = {**BASE, "accuracy": 0.99, "macs": 1.0}
    study.prune(number, "others are better", metrics, {"config": {"stages": [stage], "parent": 0}})
    family = tree.family((), (), 3)
    (attempt,) = family.attempts
    assert attempt.methods == ("alcn",)
    assert (attempt.cost, attempt.score, attempt.feasible, attempt.kept) == (None, None, False, False)
    assert [parent.number for parent in family.front] == list(family.kept) == [0]


def test_what_was_cut_off_is_no_attempt_and_what_failed_says_whether_it_diverged(
    residual_task: ac.Task, tmp_path: Path
) -> None:
    study, tree = recorded(residual_task, tmp_path)
    study.fail(study.ask({"x": 1.0}).number, "the worker process died", again=True)
    study.fail(study.ask().number, "the loss is NaN", diverged=True)
    study.fail(study.ask().number, "keep is too small")
    attempts = tree.family((), (), 3).attempts
    assert [(a.failed, a.diverged) for a in attempts] == [(True, True), (True, False)]


def test_the_front_is_what_nothing_dominates_and_of_equal_models_the_first() -> None:
    rng = random.Random(0)
    for _ in range(50):
        parents = [
            Parent(number, rng.randint(1, 6), rng.randint(1, 6), ModelProfile(1, 1, ()))
            for number in range(12)
        ]
        rng.shuffle(parents)
        ordered = sorted(parents, key=lambda parent: parent.number)
        costs = [[-parent.score, parent.cost] for parent in ordered]
        expected = sorted((ordered[i] for i in non_dominated(costs)), key=lambda parent: -parent.cost)
        assert list(_front(parents)) == expected
