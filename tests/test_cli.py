"""The command line as a user meets it: help, bad input, and what is printed of a finished run."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.main import get_command

import autocompress as ac
from autocompress.cli import main
from autocompress.cli.app import app
from autocompress.engine.settings import Settings
from tests.engine.helpers import run

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, which need not import PyTorch again; in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr("sys.argv", ["autocompress", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), *capsys.readouterr())

    return call


def test_help_shows_every_command_and_examples(tmp_path: Path) -> None:
    text = run("--help", cwd=tmp_path).stdout
    for name in (
        "search",
        "inspect",
        "init",
        "front",
        "pick",
        "export",
        "report",
        "dashboard",
        "replay",
        "explain",
    ):
        assert name in text
    assert "autocompress search fashion_mnist" in run("search", "--help", cwd=tmp_path).stdout


def test_help_of_every_command_fits_a_screen_and_has_an_example(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    commands = get_command(app).commands
    for name in commands:
        text = command(name, "--help").stdout
        assert "Example" in text
        assert len(text.splitlines()) <= 45, name
    assert "--storage" not in command("search", "--help").stdout
    everything = command("search", "--help-all").stdout
    for option in commands["search"].params:
        assert option.param_type_name == "argument" or option.opts[0] in everything


def test_help_does_not_wait_for_pytorch() -> None:
    code = "import sys, autocompress.cli; print(not {'torch', 'optuna', 'ray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


BAD = [
    (["search", "nonsense"], "task must be one of digits"),
    (["search", "digits", "--objectives", "accuracy,speed"], "objectives must be among accuracy"),
    (["search", "digits", "--methods", "magic"], "methods must be among alcn"),
    (["search", "digits", "--constraint", "accuracy>0.9"], "constraint must read like"),
    (["search", "digits", "--constraint", "speed>=1"], "constraint must be on one of"),
    (["search", "digits", "--target", "accuracy>0.9"], "target must read like"),
    (["search", "mnist", "--data-root", "nowhere"], "--data-root must be an existing folder"),
    (["search", "digits", "--model", "alexnet"], "its forward failed"),
    (["search", "digits", "--model", "nonsense"], "model must be one of mlp"),
    (["search", "digits", "--trials", "0"], "trials must be at least 1 but got 0"),
    (["search", "digits", "--timeout", "soon"], "timeout must read like"),
    (["search", "digits", "--sampler", "best"], "sampler must be one of auto"),
    (["search", "digits", "--artifact", "zip"], "artifact must be one of pt2"),
    (["search", "digits", "--space", "nothing.py"], "module file must exist but 'nothing.py'"),
    (["search", "digits", "--space", "json"], "must define suggest(trial, profile)"),
    (["search"], "TASK must be given, on the command line or as task in the configuration file"),
    (["search", "digits", "--quiet", "--json-lines"], "--quiet and --json-lines must not be given together"),
    (["search", "digits", "--config", "nothing.toml"], "config must be an existing file"),
    (["search", "digits", "--storage", "nonsense"], "storage 'nonsense' cannot be used"),
    (["search", "npz:labels.npz"], "labels of the test split must be in [0, 2]"),
    (["search", "digits", "--out", "full"], "out must be a new folder or an earlier run"),
    (["search", "digits", "--workers", "two"], "must be a whole number but got 'two'"),
    (["search", "digits", "--config", "lists.toml"], "space must be a string or a list of strings but got 3"),
    (["search", "digits", "--out", "labels.npz"], "out must be a folder that can be made"),
    (["search", "npz:lists.toml"], "must be an .npz file"),
    (["search", "npz:nan.npz"], "x_train of 'nan.npz' must be finite numbers"),
    (["search", "digits", "--warm-start", "nowhere"], "warm_start must be a run that this version can read"),
    (["search", "digits", "--warm-start", "lost"], "RUN must hold study.db"),
    (["search", "digits", "--exclude", "clasifier"], "names none (did you mean 'classifier' or"),
    (["search", "digits", "--at-least", "features.*"], "at_least must read like 'layer1.*=0.5' but got"),
    (["search", "digits", "--at-least", "features.*=2"], "at_least must be in [0, 1] but got 2.0"),
    (["inspect", "digits", "--exclude", "*"], "exclude must leave something to compress"),
    (["export", "lost", "--trial", "1"], "one of --output and --folder must be given"),
    (["export", "lost", "--trial", "1", "-o", "a", "--folder", "b"], "one of --output and --folder must be"),
    (["front", "nowhere"], "RUN must be a folder that a search wrote"),
    (["front", "broken"], "must be JSON"),
    (["front", "lost"], "RUN must hold study.db"),
    (["inspect", "no_such_module:make"], "must be importable"),
    (["inspect", "random:3x0"], "random:SHAPE must read like random:3x224x224"),
    (["init", "nosuch"], "task must be one of digits"),
    (["init", "no_such_module:make"], "task must be in an existing file or module but 'no_such_module:make'"),
    (["init", "no.such.module:make"], "task must be in an existing file or module"),
    (["init", "nothing.py:make"], "task must be in an existing file or module but 'nothing.py:make' is not"),
    (["init", "npz:nothing.npz"], "task must be in an existing file or module but 'npz:nothing.npz' is not"),
    (["init", "imagefolder:nothing"], "imagefolder must be an existing folder but 'nothing' is not"),
    (["init", "random:3x0"], "random:SHAPE must read like random:3x224x224"),
    (
        ["pick", "lost", "--bytes", "9 apples"],
        "bytes must read like '9000', '9kB', '1.5MB' or '2MiB' but got",
    ),
    (["pick", "lost", "--params", "9kB"], "params must read like '9000', '9k' or '1.5M' but got '9kB'"),
]


LOST = {
    "schema": 1,
    "id": "0123",
    "identity": {},
    "versions": {},
    "settings": {"task": "digits"},
    "objectives": [{"metric": "accuracy", "direction": "maximize"}],
    "reference": {"metrics": {"accuracy": 1.0}},
}


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_clear_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = np.zeros((30, 8, 8), dtype=np.uint8)
    np.savez(
        tmp_path / "labels.npz", x_train=x, y_train=np.arange(30) % 3, x_test=x, y_test=np.arange(30) % 5
    )
    bad = np.full((30, 8, 8), np.nan)
    np.savez(
        tmp_path / "nan.npz", x_train=bad, y_train=np.arange(30) % 3, x_test=bad, y_test=np.arange(30) % 3
    )
    (tmp_path / "lists.toml").write_text("space = 3\n")
    for name, content in (("broken", "{"), ("lost", json.dumps(LOST))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["autocompress", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2, errors
    assert message in errors
    if errors.startswith("autocompress:"):
        assert len(errors.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_while_the_reference_trains_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autocompress.engine.run.execute", interrupted)
    monkeypatch.setattr("sys.argv", ["autocompress", "search", "digits", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "interrupted before any trial" in capsys.readouterr().err


def test_other_settings_on_a_run_are_refused_by_name(finished: ac.SearchResult, command: Command) -> None:
    database = (finished.out / "study.db").read_bytes()
    done = command("search", "digits", "--epochs", 4, "--seed", 5, "--out", finished.out)
    assert done.returncode == 2
    assert "seed of the run in" in done.stderr
    assert "is 0 but got 5" in done.stderr
    assert (finished.out / "study.db").read_bytes() == database


def test_front_prints_a_table_json_and_csv(finished: ac.SearchResult, command: Command) -> None:
    table = command("front", finished.out).stdout
    assert "reference" in table
    assert "knee" in table
    printed = json.loads(command("front", finished.out, "--json").stdout)
    assert printed == finished.to_json()
    keys = {"trial", "path", "metrics", "errors", "front_probability", "test_metrics", "config", "ratios"}
    keys |= {"lineage"}
    assert set(printed["points"][0]) == keys
    assert (finished.out / printed["points"][0]["path"] / "manifest.json").is_file()
    text = command("front", finished.out, "--csv").stdout
    assert not any(line.endswith(" ") for line in table.splitlines())
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["trial"] == "0"
    assert float(rows[-1]["ratio_bytes"]) == finished.front[-1].ratios["bytes"]
    assert float(rows[-1]["error_accuracy"]) == finished.front[-1].errors["accuracy"]
    assert float(rows[0]["accuracy"]) == finished.reference.metrics["accuracy"]


def test_pick_prints_one_point(finished: ac.SearchResult, command: Command) -> None:
    knee = json.loads(command("pick", finished.out, "--knee", "--json").stdout)
    assert knee["trial"] == finished.pick("knee").trial
    close = command("pick", finished.out, "--max-drop", 1).stdout
    assert f"trial {finished.pick('max-drop', max_drop=1).trial}:" in close
    refused = command("pick", finished.out, "--knee", "--tau", 0.5)
    assert refused.returncode == 2
    assert "only one of --knee, --max-drop and --tau" in refused.stderr
    most = max(point.metrics["bytes"] for point in finished.front)
    within = command("pick", finished.out, "--knee", "--bytes", f"{most / 1000 + 0.01:.2f}kB", "--json")
    assert json.loads(within.stdout)["trial"] == finished.pick("knee").trial
    refused = command("pick", finished.out, "--latency", "8ms")
    assert "but got 'latency'; a search with --objectives accuracy,latency measures it." in refused.stderr


def test_the_reference_is_never_handed_out_without_a_word(
    finished: ac.SearchResult, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(finished, front=[finished.reference], contenders=())
    monkeypatch.setattr("autocompress.engine.results.load_run", lambda _: alone)
    picked = command("pick", finished.out)
    assert picked.returncode == 0
    assert f"reference: {finished.reference.path}" in picked.stdout
    said = "autocompress: this is the reference, not compressed: no compressed model is on the front"
    assert picked.stderr.startswith(said)
    assert len(picked.stderr.splitlines()) == 1
    assert said in command("export", finished.out, "--pick", "knee", "-o", "out.safetensors").stderr
    assert "no compressed model is on the front" in command("front", finished.out).stdout
    assert command("pick", finished.out, "--json").stderr.startswith(said)
    monkeypatch.setattr("autocompress.engine.run.search_within", lambda *_, **__: alone)
    ended = command("search", "digits").stdout
    assert "autocompress pick" not in ended
    assert "no compressed model is on the front" in ended


def test_exported_files_are_the_models(
    finished: ac.SearchResult, digits: ac.Task, tmp_path: Path, command: Command
) -> None:
    point = finished.pick("knee")
    for name in ("model.pt2", "model.safetensors"):
        done = command("export", finished.out, "--pick", "knee", "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
    x = digits.example()
    with torch.no_grad():
        exported = torch.export.load(tmp_path / "model.pt2").module()(x)
        assert torch.equal(exported, point.load()(x))
    assert (tmp_path / "model.safetensors").read_bytes() == (point.path / "weights.safetensors").read_bytes()
    refused = command("export", finished.out, "--trial", 99, "-o", tmp_path / "x.pt2")
    assert refused.returncode == 2
    assert "trial must be on the front" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "zz.xml", "--format", "pt2"), "path must end in .pt2 for the format pt2 but got"),
        (("-o", "zz.onnx", "--format", "pt2"), "path must end in .pt2 for the format pt2 but got"),
        (("-o", "zz.pt2", "--format", "openvino"), "path must end in .xml for the format openvino but got"),
        (("-o", "a-folder"), "path must be that of a file but"),
        (("-o", "a-file/m.pt2"), "path must be where files can be written but"),
        (("--folder", "a-file/new"), "folder must be where files can be written but"),
        (("-o", "zz.onnx", "--opset", "0"), "opset must be a whole number of at least 1 but got 0"),
        (("--folder", "new", "--opset", "0"), "--opset must be given with --output alone"),
    ],
)
def test_files_are_not_written_where_they_cannot_be(
    options: tuple[str, ...], said: str, finished: ac.SearchResult, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-file").write_text("mine")
    refused = command("export", finished.out, "--pick", "knee", *options)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a-folder", "a-file"}
    assert (tmp_path / "a-file").read_text() == "mine"


def test_onnx_export_gives_the_same_outputs(
    finished: ac.SearchResult, digits: ac.Task, tmp_path: Path, command: Command
) -> None:
    done = command("export", finished.out, "--pick", "knee", "-o", tmp_path / "model.onnx")
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x = next(iter(digits.val))[0]
    answers = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        assert np.allclose(answers, finished.pick("knee").load()(x).numpy(), atol=1e-4)


def test_a_dashboard_prints_no_warnings_of_optunas_charts(
    finished: ac.SearchResult, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def served(*_: object) -> None:
        heard.append("served")
        warnings.warn_explicit("few trials", UserWarning, "evaluator.py", 1, module="optuna.importance")

    monkeypatch.setattr("autocompress.report.dashboard.serve_dashboard", served)
    done = command("dashboard", finished.out)
    assert (done.returncode, done.stderr, heard) == (0, "", ["served"])


def test_replay_gives_the_stored_metrics_again(finished: ac.SearchResult, command: Command) -> None:
    # The first may be the reference with its weights as codes, which trains nothing.
    number = max(finished.front, key=lambda point: len(point.lineage)).trial
    done = command("replay", finished.out, "--trial", number)
    assert done.returncode == 0, done.stderr
    # What it is made of trains first; each line says which trial it is of.
    line = next(p.lineage for p in finished.front if p.trial == number)
    trained = re.findall(r"^trial (\d+)  epoch 1  loss ", done.stdout, re.MULTILINE)
    assert trained
    assert trained == [str(n) for n in line][: len(trained)]
    assert not re.search(r"^epoch", done.stdout, re.MULTILINE)
    stored = json.loads((finished.out / "replays" / f"{number:04d}" / "manifest.json").read_text())
    point = next(p for p in finished.front if p.trial == number)
    assert stored["metrics"] == point.metrics


def test_inspect_lists_every_layer(command: Command) -> None:
    printed = json.loads(command("inspect", "digits", "--model", "resnet20", "--json").stdout)
    members = {
        m["tensor"].rpartition(".")[0] for g in printed["groups"] for m in g["members"] if m["role"] != "in"
    }
    assert members | set(printed["frozen"]) == set(printed["layers"])
    table = command("inspect", "digits", "--model", "resnet20").stdout
    assert "coupled channel groups" in table
    assert "10 cut points" in table
    assert "9 residual branches" in table
    assert printed["cut_points"][0] == {
        "name": "conv1",
        "shape": [16, 8, 8],
        "macs_before": 64 * 16 * 9,
        "partners": list(range(1, 10)),
    }
    assert "it makes the model's outputs" in table


def test_inspect_shows_what_is_excluded_or_stays_in_part(command: Command) -> None:
    options = ("--exclude", "linear", "--exclude", "layer3.2", "--at-least", "layer1.*=0.5")
    arguments = ("inspect", "digits", "--model", "resnet20", *options)
    printed = json.loads(command(*arguments, "--json").stdout)
    assert printed["frozen"]["layer3.2.conv1"] == "excluded by 'layer3.2'"
    assert printed["frozen"]["layer3.0.conv2"].startswith("its channels are coupled with 'layer3.2.")
    least = {group["name"]: (group["at_least"], group["width"]) for group in printed["groups"]}
    assert least["layer1.0.conv1"] == (8, 16)
    assert "at least 8" in command(*arguments).stdout


def test_limits_come_from_configuration_files_as_lists_texts_or_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    seen: list[Settings] = []

    def search(interruption: object, task: str, settings: Settings, progress: object) -> None:
        seen.append(settings)
        raise ac.UsageError("that is enough")

    monkeypatch.setattr("autocompress.engine.run.search_within", search)
    files = [
        'exclude = ["features.0", "Linear"]\nat-least = "features.4=0.5, features.8=1"\n',
        'exclude = "features.0,Linear"\n[at_least]\n"features.4" = 0.5\n"features.8" = 1\n',
    ]
    for text in files:
        (tmp_path / "c.toml").write_text(text)
        assert "that is enough" in command("search", "digits", "--config", "c.toml").stderr
        assert seen[-1].exclude == ("features.0", "Linear")
        assert seen[-1].at_least == {"features.4": 0.5, "features.8": 1.0}
    command("search", "digits", "--config", "c.toml", "--exclude", "classifier")
    assert seen[-1].exclude == ("classifier",)


def test_configuration_files_give_options_and_the_command_line_wins(tmp_path: Path, command: Command) -> None:
    (tmp_path / "c.toml").write_text('trials = 0\nobjectives = ["accuracy", "macs"]\n')
    assert "trials must be at least 1" in command("search", "digits", "--config", "c.toml").stderr
    (tmp_path / "c.toml").write_text("speed = 3\n")
    assert (
        "must hold options of search but has 'speed'"
        in command("search", "digits", "--config", "c.toml").stderr
    )


def test_unknown_keys_of_a_configuration_file_are_refused_with_the_nearest_known(
    tmp_path: Path, command: Command
) -> None:
    for key, nearest in (
        ("trails", "trials"),
        ("cpus_per_trail", "cpus-per-trial"),
        ("distil", "distillation"),
    ):
        (tmp_path / "c.toml").write_text(f"{key} = 3")
        refused = command("search", "digits", "--config", "c.toml")
        assert refused.returncode == 2
        assert f"has '{key}'; the nearest is '{nearest}'" in refused.stderr


def test_init_writes_every_option_of_a_search_with_its_help_and_default(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = []

    def searched(interruption: object, task: str, settings: Settings, progress: object) -> None:
        seen.append(settings)
        raise ac.UsageError("that is enough")

    monkeypatch.setattr("autocompress.engine.run.search_within", searched)
    assert "autocompress search --config run.toml" in command("init", "digits").stdout
    command("search", "--config", "run.toml")
    command("search", "digits")
    assert seen[0] == seen[1] == Settings(task="digits")
    written = (tmp_path / "run.toml").read_text()
    assert "# Time limit: 90s, 30m, 2h." in written
    keys = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", written, flags=re.MULTILINE)).keys()
    options = set(get_command(app).commands["search"].params)
    assert keys == {option.name for option in options} - {"config", "help", "help_all"}
    command("search", "--config", "run.toml", "--trials", 7)
    assert seen[-1].trials == 7
    refused = command("init", "mnist")
    assert refused.returncode == 2
    assert "out must be a new file but 'run.toml' exists" in refused.stderr
    assert (tmp_path / "run.toml").read_text() == written


def test_version_is_printed(command: Command) -> None:
    assert command("--version").stdout == f"{version('autocompress')}\n"


def test_the_result_comes_last_of_the_json_lines_and_alone_where_it_is_to_be_quiet(
    finished: ac.SearchResult, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.engine.run.search_within", lambda *_, **__: finished)
    lines = command("search", "digits", "--json-lines").stdout.splitlines()
    assert json.loads(lines[-1]) == {
        "event": "result",
        **finished.to_json(),
        "disk_bytes": finished.disk_bytes,
    }
    quiet = command("search", "digits", "--quiet")
    assert quiet.stderr == ""
    assert "Pareto front of" in quiet.stdout
    assert "next " not in quiet.stdout


def test_distillation_is_switched_off_by_option_and_file(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []

    def search(interruption: object, task: str, settings: ac.Settings, progress: object) -> None:
        given.append(settings.distill)
        raise ac.UsageError("enough")

    monkeypatch.setattr("autocompress.engine.run.search_within", search)
    (tmp_path / "c.toml").write_text("distillation = false\n")
    for options in ([], ["--no-distillation"], ["--config", "c.toml"]):
        assert "enough" in command("search", "digits", *options).stderr
    assert given == [True, False, False]


def test_explain_lists_subjects_and_prints_each(command: Command) -> None:
    listed = command("explain").stdout
    for subject in ("early-stopping", "batches", "latency", "parts-left-alone", "run-folder", "alcn", "lc"):
        assert f"  {subject}\n" in listed
    assert command("explain", "Early stopping").stdout.startswith("## Early stopping\n")
    assert command("explain", "alcn").stdout.startswith("# ALCN: learnable channel ratios\n")


def test_an_unknown_subject_is_refused_with_the_nearest(command: Command) -> None:
    refused = command("explain", "latencies")
    assert refused.returncode == 2
    assert (
        "TERM must be a subject of the pages but got 'latencies'; the nearest are latency" in refused.stderr
    )


@pytest.mark.parametrize(
    "word",
    [
        *("knee", "max-drop", "--max-drop", "sure", "tau", "target", "pick", "front", "Pareto front", "×ref"),
        *("hypervolume", "file bytes", "of weights", "weight_bytes", "params", "macs", "lineage", "lineages"),
        *("parent", "reference", "rate", "distillation", '"overhead"', "c++", "C++", "within noise", "trial"),
        *(
            "val",
            "test",
            "on the front",
            "out of bounds",
            "stopped early",
            "failed",
            "checkpoint",
            "artifact",
        ),
        *("importance", "PED-ANOVA", "kept", "bits", "taken over", "training on", "standard error", "±"),
        *("family tree", "latency", "memory", "early-stopping", "the knee", "epochs", "teacher", "RUN"),
    ],
)
def test_each_word_of_the_output_is_explained(word: str, command: Command) -> None:
    done = command("explain", word)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 40


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("export", "runs/x", "--trial", 1, "-o", "s3://KEYKEY:s3cret@bucket/model.pt2"), "output"),
        (("export", "runs/x", "--trial", 1, "--folder", "s3://KEYKEY:s3cret@bucket/model.pt2"), "folder"),
        (("init", "digits", "--out", "s3://KEYKEY:s3cret@bucket/model.pt2"), "out"),
    ],
)
def test_what_is_written_here_is_refused_an_address(
    arguments: tuple[object, ...], name: str, command: Command
) -> None:
    refused = command(*arguments)
    assert refused.returncode == 2
    said = (
        f"autocompress: {name} must be a path on this machine but got 's3://***@bucket/model.pt2' (write it"
    )
    assert refused.stderr.startswith(said)
    assert len(refused.stderr.splitlines()) == 1


def test_an_empty_subject_is_told_how_to_ask(command: Command) -> None:
    for empty in ("", "  ", '""'):
        refused = command("explain", empty)
        assert refused.returncode == 2
        assert refused.stderr.startswith(
            "autocompress: TERM must be a subject, as in `autocompress explain knee`"
        )
        assert len(refused.stderr.splitlines()) == 1


def test_a_word_that_is_no_subject_is_found_in_the_texts(command: Command) -> None:
    assert "it stands under standard-errors" in command("explain", "bootstrap").stderr
    assert command("explain", "early", "stopping").stdout.startswith("## Early stopping")


def test_links_of_the_pages_lead_somewhere() -> None:
    root = Path(ac.__file__).parents[1]
    for page in (root / "README.md", *root.glob("autocompress/**/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.is_file(), f"{page}: {target}"
            headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
            assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], target
