"""The models that trials start from, by study and checkpoints, in real searches."""

from __future__ import annotations

from pathlib import Path

import autocompress as ac
from autocompress.engine.family import stored_as_codes


def configs(result: ac.SearchResult) -> dict[int, dict[str, object]]:
    complete = [t for t in result.study.trials if t.number and t.state.name == "COMPLETE"]
    return {trial.number: trial.user_attrs["details"]["config"] for trial in complete}


def test_a_bound_on_cost_is_reached_over_models_that_are_too_costly_yet(tmp_path: Path) -> None:
    options = {"objectives": ["accuracy", "macs"], "constraints": ["macs<=0.3*ref", "accuracy>=0.5*ref"]}
    result = ac.search(
        "digits", trials=5, epochs=3, workers=1, methods=["alcn"], out=tmp_path / "run", **options
    )
    found = configs(result)
    assert [found[number]["parent"] for number in sorted(found)][:2] == [0, 1]
    assert result.study.trials[1].user_attrs["metrics"]["macs"] > 0.3 * result.reference.metrics["macs"]
    assert any(point.trial and point.ratios["macs"] <= 0.3 for point in result.front)
    assert all(point.ratios["macs"] <= 0.3 for point in result.front)


def test_methods_that_store_weights_end_a_line() -> None:
    assert stored_as_codes(["alcn", "lc"])
    assert not stored_as_codes(["alcn", "alds"])
    assert not stored_as_codes([])
