"""A search that has a target: where it ends, and which point answers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.cli.show import print_front
from autocompress.engine.family import FamilyTree
from autocompress.errors import SettingsError
from autocompress.measure import Constraint, Objective
from autocompress.study import SearchStudy, sqlite_url
from autocompress.task import ModelProfile

pytestmark = pytest.mark.usefixtures("shared_ray")

KNOWN = dict.fromkeys(("accuracy", "bytes", "weight_bytes", "macs"), "")
TRIALS = 30


class Notes(ac.Progress):
    """Keeps the lines that a search says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[ac.SearchResult, list[str]]:
    """What a search for the best model of half the MACs ended with, and what it said."""
    told = Notes()
    options = {"methods": ["alcn"], "model": "mlp", "epochs": 1, "workers": 1, "trials": TRIALS}
    options |= {"objectives": ["accuracy", "macs"], "target": "macs<=0.5*ref", "progress": told}
    return ac.search("digits", **options, out=tmp_path_factory.mktemp("target") / "run"), told.lines


def test_the_search_ends_where_more_would_hardly_help_and_says_so(
    searched: tuple[ac.SearchResult, list[str]],
) -> None:
    result, lines = searched
    trained = [t for t in result.study.trials if t.number and "extra" not in t.user_attrs]
    left = TRIALS - len(trained)
    assert 0 < left < TRIALS - 6
    reason = "none of the last 6 trials came closer to the target macs<=0.5*ref"
    assert f"{reason}: {left} trials are left" in lines
    most = 0.5 * result.reference.metrics["macs"]
    inside = [(t.number, t.values[0]) for t in trained if t.user_attrs["metrics"]["macs"] <= most]
    last = {t.number for t in trained[-6:]}
    before = [accuracy for number, accuracy in inside if number not in last]
    assert before
    assert all(accuracy <= max(before) for _, accuracy in inside)


def test_the_best_below_a_target_on_cost_answers_it(
    searched: tuple[ac.SearchResult, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    result = ac.load_run(searched[0].out)
    point = result.pick()
    below = [p for p in result.front if p.ratios["macs"] <= 0.5]
    assert point.trial == max(below, key=lambda p: p.metrics["accuracy"]).trial == result.pick("target").trial
    print_front(result)
    printed = capsys.readouterr().out
    assert re.search(
        rf"^target macs<=0\.5\*ref: trial {point.trial}, {point.ratios['macs']:.3g} of the macs, "
        rf"accuracy {point.metrics['accuracy']:.4f} \(test {point.test_metrics['accuracy']:.4f}\)$",
        printed,
        re.MULTILINE,
    )
    assert f"target {point.trial} " in printed


def test_the_cheapest_that_holds_a_target_on_accuracy_answers_it(finished: ac.SearchResult) -> None:
    base = finished.reference.metrics["accuracy"]
    for drop in (0.0, 0.02, 0.05):
        target = Constraint.parse(f"accuracy>=ref-{drop}", KNOWN)
        holding = [p for p in finished.front if p.trial and p.metrics["accuracy"] >= base - drop]
        aimed = replace(finished, target=target)
        assert aimed.pick().trial == min(holding, key=lambda p: p.metrics["bytes"]).trial
        assert aimed.pick("knee").trial == finished.pick().trial


def test_a_target_that_nothing_holds_is_said_and_the_knee_is_marked(
    finished: ac.SearchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    aimed = replace(finished, target=Constraint.parse("accuracy>=ref+0.5", KNOWN))
    assert aimed.pick().trial == finished.pick("knee").trial
    with pytest.raises(SettingsError, match="which no point holds"):
        aimed.pick("target")
    print_front(aimed)
    assert "target accuracy>=ref+0.5: no compressed model on the front holds it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "on_cost", "cost"),
    [
        ("bytes<=0.2*ref", True, 15 / 95),  # a file of 100 of which 5 are beside its tensors
        ("weight_bytes<=0.2*ref", True, 0.2),
        ("bytes<=3", True, 0.0),
        ("macs<=0.2*ref", True, float("inf")),  # no objective, so that its share of bytes is not known
        ("accuracy>=ref-0.1", False, float("inf")),
    ],
)
def test_bounds_on_files_are_those_of_their_tensors(
    text: str, on_cost: bool, cost: float, tmp_path: Path
) -> None:
    objectives = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))
    base = {"accuracy": 0.9, "bytes": 100.0, "weight_bytes": 95.0, "macs": 10.0}
    study = SearchStudy(sqlite_url(tmp_path), "test", objectives)
    study.add_reference(base, {})
    target = Constraint.parse(text, KNOWN)
    tree = FamilyTree(study, tmp_path, objectives, (), base, ModelProfile(1, 1, ()), target)
    family = tree.family((), (), 5)
    assert family.target == ac.Target(text, on_cost, pytest.approx(cost))
    assert family.front[0].holds != on_cost
