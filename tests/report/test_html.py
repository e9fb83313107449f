"""The report as a reader has it: a file that asks for nothing, in a real browser too."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from autocompress.engine.results import report
from autocompress.report.charts import Axis
from tests.report.browser import needs_browser, opened
from tests.report.runs import EVIL, WrittenRun


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> WrittenRun:
    run = WrittenRun(tmp_path_factory.mktemp("runs") / "run", {"trials": 6, "task": EVIL})
    report(run.result, run.folder, run.study)
    return run


@pytest.fixture(scope="module")
def page(written: WrittenRun) -> str:
    return written.folder.report.read_text(encoding="utf-8")


def charts(page: str) -> dict[str, Any]:
    (stored,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    return json.loads(stored)


class Elements(HTMLParser):
    """Tags of a page, and the text of each table row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


def test_nothing_outside_of_the_file_is_asked_for(page: str) -> None:
    assert {*re.findall(r"https?://[\w.]+", page)} == {"http://www.w3.org"}  # names of namespaces
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    assert f'content="{policy}"' in page


def test_what_users_call_things_is_text_and_no_markup(page: str) -> None:
    elements = Elements(page)
    assert elements.tags.count("script") == 3  # the charts, Plotly and what draws
    assert "alert('x')" not in page.replace("alert(&#39;x&#39;)", "").replace("alert(\\u0027x\\u0027)", "")
    (by_class,) = [chart for name, chart in charts(page).items() if name.startswith("classes-3")]
    # Plotly reads some tags of its own: what it gets is escaped once more.
    assert "&lt;/script&gt;&lt;script&gt;alert('x')&lt;/script&gt;&lt;b&gt;" in by_class["data"][0]["y"]


def test_equal_factors_are_equal_steps_and_what_is_out_of_bounds_is_shaded(page: str) -> None:
    chart = charts(page)["front-0"]
    across = chart["layout"]["xaxis"]
    assert across["type"] == "log"
    ticks = across["tickvals"]
    assert len({round(b / a, 6) for a, b in itertools.pairwise(ticks)}) == 1
    assert across["ticktext"][ticks.index(1.0)] == "1×<br>1 kB"
    shades = [(s.get("x0"), s.get("y1")) for s in chart["layout"]["shapes"]]
    assert (0.8, 1) in shades  # bytes above 0.8 times the reference's
    assert any(y == 0.9 for _, y in shades)  # accuracy below 0.9
    names = {trace["name"] for trace in chart["data"]}
    assert names == {"out of bounds", "front", "reference", "alcn", "lc"}


@pytest.mark.parametrize(("low", "high"), [(0.95, 1.0), (0.7, 1.1), (0.03, 1.0), (1e-6, 1.0)])
def test_axes_have_some_ticks_and_not_many_however_far_they_reach(low: float, high: float) -> None:
    ticks = Axis("bytes", [1000 * low, 1000 * high], 1000.0).layout()["tickvals"]
    assert 3 <= len(ticks) <= 8
    assert 1.0 in ticks


def test_hover_tells_configuration_metrics_and_standard_errors(page: str) -> None:
    traces = {trace["name"]: trace for trace in charts(page)["front-0"]["data"]}
    (text,) = traces["lc"]["hovertext"]
    assert "accuracy: 0.9400 ± 0.0100" in text
    assert "file bytes: 100 B (0.1×)" in text
    assert "lc, from trial 2" in text
    assert "steps = 7" in text
    assert traces["alcn"]["error_y"]["array"] == [0.01, 0.01]


def test_the_family_tree_has_each_model_of_the_front_and_what_it_came_from(page: str) -> None:
    traces = charts(page)["family"]["data"]
    named = {trace["name"]: trace["text"] for trace in traces if "name" in trace}
    assert named == {"reference": ["reference"], "alcn": ["1", "2"], "lc": ["3"]}
    assert sum(trace["mode"] == "lines" for trace in traces) == 3
    words = re.sub(r"</?b>", "", page)
    assert "reference → alcn (initial_ratio 0.25), rate ×8 → trial 1 → alcn (initial_ratio 0.25)," in words
    assert "→ trial 2 → lc (steps 7) → trial 3" in words


def test_hypervolume_grows_with_the_epochs_and_methods_have_their_share(page: str) -> None:
    steps = charts(page)["growth"]["data"][0]
    assert steps["x"] == [0, 3, 6, 6, 9, 9]
    assert steps["y"] == sorted(steps["y"])
    rows = {row[0]: row[1:] for row in Elements(page).rows if len(row) == 9}
    assert rows["alcn"][:5] == ["3", "0", "0", "9", "1, 2"]
    assert rows["depth"][:3] == ["1", "1", "0"]
    assert rows["lc"][6] == "0.4×"  # of what trial 2 had
    shares = [float(rows[name][5].removesuffix(" %")) for name in ("alcn", "lc", "depth")]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_few_trials_have_no_importance_and_the_page_says_so(page: str) -> None:
    assert "importance" not in charts(page)
    assert "For accuracy nothing is known: 4 complete trials are too few: it takes 10." in page


def test_each_model_has_its_layers_curves_classes_files_and_commands(page: str, written: WrittenRun) -> None:
    shown = charts(page)
    titles = [shown[f"layers-3-{place}"]["layout"]["title"]["text"] for place in range(5)]
    assert titles == ["channels", "rank", "bits a number", "MACs", "bytes of tensors"]
    before, after = shown["layers-3-0"]["data"]
    assert (before["x"], after["x"]) == ([16, 16], [1, 1])
    # Trial 3 was not trained: the curves are those of what it was made of.
    assert "Of trial 2: what came after it was not trained." in page
    curves = [shown[f"curves-3-{place}"]["layout"]["title"]["text"] for place in range(3)]
    assert curves == ["training loss", "share that is kept", "mean survival of channel groups"]
    by_class = shown["classes-3"]["data"][0]
    assert by_class["x"] == [pytest.approx(-90), pytest.approx(0)]
    rows = Elements(page).rows
    assert ["trials/0003/model.pt2", "100 bytes"] in rows
    run = written.folder.path
    assert f"autocompress export {run} --trial 3 -o model.pt2" in page
    assert f"torch.export.load(&#39;{run}/trials/0003/model.pt2&#39;)" in page


def test_settings_that_are_defaults_are_folded_and_failures_have_their_reason(page: str) -> None:
    changed = page.partition("settings are the defaults</summary>")[0]
    assert ["trials", "6"] in Elements(changed).rows
    assert "image_size" not in changed
    assert "the loss became nan" in page


def test_a_run_whose_bounds_nothing_holds_has_a_report_that_says_so(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", bounds=("accuracy>=0.99", "bytes|params<=0.5*ref"))
    page = report(run.result, run.folder, run.study).read_text(encoding="utf-8")
    assert "No compressed model satisfies the constraints." in page
    assert "a bound on one of several metrics has no side to shade" in page
    assert set(charts(page)) == {"front-0", "growth"}
    assert {trace["name"] for trace in charts(page)["front-0"]["data"]} == {"out of bounds", "reference"}


def test_what_an_older_version_did_not_store_is_left_out(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run")
    for manifest in run.folder.path.glob("**/manifest.json"):
        stored = json.loads(manifest.read_text())
        for name in ("layers", "class_counts", "class_names"):
            del stored[name]
        manifest.write_text(json.dumps(stored))
    (run.folder.trials / "0002" / "manifest.json").write_text("{")
    page = report(run.result, run.folder, run.study).read_text(encoding="utf-8")
    assert not [name for name in charts(page) if name.startswith(("layers", "classes"))]
    assert "or the run was made by a version that did not note them" in page
    assert "checkpoint must be a readable folder" in page


@needs_browser
def test_a_browser_draws_every_chart_and_has_nothing_to_say(written: WrittenRun, tmp_path: Path) -> None:
    opening = tmp_path / "open.html"
    text = written.folder.report.read_text(encoding="utf-8")
    opening.write_text(
        text.replace('<details class="point"', '<details class="point" open'), encoding="utf-8"
    )
    document, said = opened(opening.as_uri(), tmp_path / "profile")
    assert said == ""
    drawn = re.findall(r'<div class="chart[^"]*drawn[^"]*" id="([\w-]+)"', document)
    assert sorted(drawn) == sorted(charts(text))
    assert document.count('class="main-svg"') >= len(drawn)


@needs_browser
def test_it_fits_a_telephone(written: WrittenRun, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe src='{written.folder.report.as_uri()}' style='width:400px;height:800px;border:0'></iframe>"
        "<script>onload = () => setTimeout(() => { const page = frames[0].document.documentElement;"
        "const heads = [...frames[0].document.querySelectorAll('.front th')];"
        "const cost = heads.find(head => head.innerText == 'file bytes');"
        "const seen = cost.getBoundingClientRect().right <= page.clientWidth - 16;"
        "document.title = `${page.scrollWidth} of ${page.clientWidth}, ${seen}` }, 3000)</script>"
    )
    document, _ = opened(
        frame.as_uri(), tmp_path / "profile", "--allow-file-access-from-files", "--hide-scrollbars"
    )
    assert "<title>400 of 400, true</title>" in document
