"""optuna-dashboard as a run has it: what a person can read of trials, and where it listens."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import optuna_dashboard
import pytest

from autocompress.engine.results import draw_pictures, report
from autocompress.errors import SettingsError
from autocompress.report.dashboard import ToldApp, _is_local, _server, stage_name
from autocompress.result import SearchResult
from tests.report.browser import needs_browser, opened
from tests.report.runs import WrittenRun


class Served:
    """The application of a written run, asked without a network."""

    def __init__(self, run: WrittenRun) -> None:
        self.run, self.loads = run, 0
        dashboard = optuna_dashboard.wsgi(run.study.study._storage, artifact_store=run.study.artifacts)
        self.app = ToldApp(dashboard, run.study, self.load)

    def load(self) -> SearchResult:
        self.loads += 1
        return self.run.result

    def get(self, path: str, query: str = "", method: str = "GET", body: bytes = b"") -> tuple[str, bytes]:
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "here",
            "SERVER_PORT": "80",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
        }
        begun: list[Any] = []
        content = b"".join(self.app(environ, lambda *answer: begun.append(answer)))
        return begun[-1][0], content

    def detail(self, query: str = "") -> dict[str, Any]:
        status, body = self.get("/api/studies/1", query)
        assert status == "200 OK"
        return json.loads(body)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(WrittenRun(tmp_path_factory.mktemp("runs") / "mine"))


@pytest.fixture
def changing(tmp_path: Path) -> Served:
    """One of a test's own."""
    return Served(WrittenRun(tmp_path / "mine"))


def test_the_best_trials_are_the_front_and_what_breaks_a_constraint_is_told(served: Served) -> None:
    detail = served.detail()
    assert detail["name"] == "mine"
    assert [trial["number"] for trial in detail["best_trials"]] == [p.trial for p in served.run.result.front]
    # The smallest of all, with an accuracy below its bound.
    out_of_bounds = detail["trials"][4]
    assert max(out_of_bounds["constraints"]) > 0
    assert 4 not in [trial["number"] for trial in detail["best_trials"]]
    assert all(max(trial["constraints"]) <= 0 for trial in detail["best_trials"])


def test_each_trial_has_a_note_that_says_what_it_is(served: Served) -> None:
    notes = [trial["note"]["body"] for trial in served.detail()["trials"]]
    assert notes[0].startswith("### Reference")
    assert "Compresses trial 1 with alcn, over 3 epochs at 1 times the recipe's rate" in notes[2].replace(
        "\\", ""
    )
    assert "- parent: trial 1" in notes[2]
    assert "| file bytes | 250 B | 0.25× |" in notes[2]
    assert "[manifest\\.json](/run/trials/0002/manifest.json)" in notes[2].replace(
        "manifest.", "manifest\\.", 1
    )
    assert "out of bounds: it is on no front" in notes[4]
    assert "- state: failed" in notes[5]
    assert "the loss became nan" in notes[5]
    assert "<script>" not in "".join(notes)
    assert "- state: running" in notes[6]
    assert "- parent: trial 2" in notes[6]


def test_what_somebody_wrote_stays(changing: Served) -> None:
    written = json.dumps({"body": "mine", "version": 1}).encode()
    status, _ = changing.get("/api/studies/1/2/note", method="PUT", body=written)
    assert status.startswith("20")
    assert changing.detail()["trials"][1]["note"]["body"] == "mine"


def test_the_study_has_a_note_and_charts_of_the_whole_run(served: Served) -> None:
    detail = served.detail()
    note = detail["note"]["body"]
    assert note.startswith("## mine")
    assert "Constraints: `accuracy>=0.9`, `bytes<=0.8*ref`" in note
    assert re.search(r"\| 3 \| lc \| 2 \| 0.9400 \(0.959×\) \| 100 B \(0.1×\)", note)
    charts = [chart["id"] for chart in detail["plotly_graph_objects"]]
    assert charts == ["front-bytes", "family-tree", "hypervolume"]
    assert all(json.loads(chart["graph_object"])["data"] for chart in detail["plotly_graph_objects"])


def test_parameters_say_which_part_of_a_trial_they_are_of(served: Served) -> None:
    assert stage_name("parent") == "1 start: parent"
    assert stage_name("alcn.initial_ratio") == "2 compress: alcn.initial_ratio"
    assert stage_name("lr_scale") == "3 train: lr_scale"
    detail = served.detail()
    spaces = {entry["name"] for entry in detail["union_search_space"]}
    assert spaces == {"1 start: method"} == {p["name"] for p in detail["trials"][1]["params"]}


def test_trials_that_were_sent_before_are_not_sent_again_but_may_be_best(served: Served) -> None:
    detail = served.detail("after=4")
    assert [trial["number"] for trial in detail["trials"]] == [4, 5, 6]
    assert 3 in [trial["number"] for trial in detail["best_trials"]]
    assert len(served.detail("after=x")["trials"]) == 7


def test_the_result_is_made_anew_when_the_study_changed(changing: Served) -> None:
    changing.detail()
    changing.detail()
    assert changing.loads == 1
    changing.run.study.fail(6, "it was cut off")
    assert "it was cut off" in changing.detail()["trials"][6]["note"]["body"]
    assert changing.loads == 2


def test_files_of_checkpoints_and_the_report_can_be_fetched_and_no_others(served: Served) -> None:
    run = served.run
    assert served.get("/run/report.html")[0] == "404 Not Found"
    report(run.result, run.folder, run.study)
    assert served.get("/run/report.html") == ("200 OK", run.folder.report.read_bytes())
    assert served.get("/run/trials/0003/model.pt2") == ("200 OK", b"0" * 100)
    (run.folder.path.parent / "secret").write_text("x")
    for path in ("run.json", "study.db", "../secret", "trials/../run.json", "/etc/passwd", "trials/0003", ""):
        assert served.get(f"/run/{path}")[0] == "404 Not Found", path


def test_pictures_show_the_layers_of_each_model(changing: Served) -> None:
    run = changing.run
    draw_pictures(run.result, run.study)
    trial = changing.detail()["trials"][3]
    (picture,) = trial["artifacts"]
    assert picture["filename"] == "trial-3.png"
    assert (run.folder.artifacts / picture["artifact_id"]).read_bytes().startswith(b"\x89PNG")


def test_a_port_that_is_taken_and_hosts_that_are_not_here_are_told_in_a_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port must be free on [0-9.]+ but {port} is in use"):
            _server("127.0.0.1", port, None)
    with pytest.raises(SettingsError, match="host must be of this machine but got"):
        _server("192.0.2.1", 0, None)
    with pytest.raises(SettingsError, match=r"port must be in \[0, 65535\] but got 70000"):
        _server("127.0.0.1", 70000, None)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_only_a_host_that_others_reach_is_warned_of(host: str, local: bool) -> None:
    with _server(host, 0, None) as server:
        assert _is_local(server) is local


@needs_browser
def test_a_browser_shows_the_front_as_best_and_the_notes(served: Served, tmp_path: Path) -> None:
    with _server("127.0.0.1", 0, served.app) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/dashboard/studies/1"
        document, _ = opened(f"{address}/trials?numbers=3", tmp_path / "profile")
        server.shutdown()
    assert "mine" in document
    assert document.count("Best Trial") >= len(served.run.result.front)
    assert "Compresses trial 2 with lc, without training." in document
    assert "Trial 3: lc" in document
