"""Each method from search to a file that runs elsewhere: what `pytest -m smoke` tries on lowest versions."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import autocompress as ac
from autocompress import plugins
from autocompress.checkpoint import open_checkpoint
from autocompress.checkpoint.reload import reload_faults
from autocompress.engine.replay import replay
from autocompress.report import TrialEnd

pytestmark = pytest.mark.smoke

# In one search of one artefact.
METHODS = sorted(name for name, method in plugins.compressors().items() if method.artifacts is None)


class CtrlC(ac.Progress):
    """Interrupts the search when a trial ends."""

    def trial_end(self, end: TrialEnd) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> ac.SearchResult:
    """A search with each method from the reference, interrupted and continued to the last of them."""
    out: Path = tmp_path_factory.mktemp("smoke") / "run"
    options = {"epochs": 2, "workers": 1, "constraints": [], "methods": METHODS, "out": out}
    options["objectives"] = ["accuracy", "macs"]
    # What was cut off runs again, so that one more is left of the budget than methods.
    cut_off = ac.search("digits", trials=2 + len(METHODS), progress=CtrlC(), **options)
    assert cut_off.interrupted
    for method in METHODS:
        cut_off.study.enqueue_trial({"method": method, "parent": 0.0, "only_train": 0.0})
    return ac.search("digits", trials=2 + len(METHODS), progress=ac.Progress(), **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_through_search_resume_export_and_reload(
    method: str, resumed: ac.SearchResult, digits: ac.Task, tmp_path: Path
) -> None:
    # Of guided trials the study knows what was asked of the method.
    complete = [t for t in resumed.study.trials[1:] if "asked" not in t.user_attrs and t.values]
    stages = {t.number: [s["method"] for s in t.user_attrs["details"]["config"]["stages"]] for t in complete}
    assert sorted(stages.values()) == [[name] for name in METHODS]
    number = next(number for number, names in stages.items() if names == [method])
    stored, again, folder = replay(resumed.out, number)
    # The bytes of a model that was not kept were estimated.
    estimated = resumed.study.trials[number].user_attrs["details"]["estimated"]
    assert all(again.metrics[name] == stored[name] for name in stored if name not in estimated)
    config = open_checkpoint(folder).manifest["config"]
    point = ac.ParetoModel(number, folder, stored, {}, config, {})
    files = [point.export(tmp_path / name) for name in ("model.pt2", "model.onnx")]
    assert reload_faults(files, digits.example(3)) == {}
