"""Searches of runs in an object store: real processes, a real server, machines with their own caches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState
from torch import nn

import autocompress as ac
from autocompress.report import TrialEnd
from tests.engine import gated
from tests.engine.helpers import run, start, wait_until
from tests.remote.server import KEY, SECRET, Server, serving

TRIALS = 4


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


class Machine:
    """A machine with a cache and a working folder of its own.

    Args:
        folder: of all that is there.
        address: of the run.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        folder.mkdir()
        # Not the working folder: a folder "autocompress" there would be taken for the package.
        self.cache = folder / "cache"
        self.gate = folder.parent / "gate"
        self.gate.mkdir(exist_ok=True)
        source = gated.__file__
        self.arguments = ("search", f"{source}:make", "--space", source, "--trials", TRIALS)
        self.arguments += ("--workers", 1, "--constraint", "none", "--keep", "all", "--out", address)
        self.environment = {
            "XDG_CACHE_HOME": str(self.cache),
            "GATE": str(self.gate),
            "GATE_TRIAL": "-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return run(*arguments, cwd=self.folder, **self.environment)

    def search(self) -> subprocess.CompletedProcess[str]:
        return self.run(*self.arguments)

    def start(self) -> subprocess.Popen[str]:
        return start(*self.arguments, cwd=self.folder, **self.environment)


def secrets_in(folder: Path) -> list[Path]:
    secrets = [SECRET.encode(), b"s3cr%2Fet", KEY.encode()]
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [file for file in files if any(secret in file.read_bytes() for secret in secrets)]


def test_a_search_whose_machine_is_lost_goes_on_on_another_and_others_read_it_meanwhile(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server.address("team/run")
    first, second, reader = (Machine(tmp_path / name, address) for name in ("first", "second", "reader"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(reader.cache))
    driver = first.start()
    try:
        log = first.folder / "log.txt"
        wait_until(lambda: "trials/0001/manifest.json" in server.names("team/run"), driver, log)
        (first.gate / "closed").touch()
        wait_until(lambda: list(first.gate.glob("waiting-*")), driver, log)
        ended = log.read_text().count("on the front")
        wait_until(lambda: len(_complete(address)) == ended, driver, log)
        before = _complete(address)
        refused = second.search()
        assert refused.returncode == 2
        assert "must not be searched by two processes but 's3://***@bucket/team/run?" in refused.stderr
        assert f"in use by process {driver.pid} on " in refused.stderr
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    (first.gate / "open").touch()
    again = second.search()
    assert again.returncode == 0, again.stderr
    assert "continuing the run in s3://***@bucket/team/run" in again.stderr
    after = _complete(address)
    assert {number: after[number] for number in before} == before
    assert 0 < len(before) < len(after) == TRIALS
    names = server.names("team/run")
    assert {f"trials/{number:04d}/manifest.json" for number in after} <= names
    assert "lock.json" not in names
    exported = reader.run("export", address, "--trial", max(after), "-o", "model.pt2")
    assert exported.returncode == 0, exported.stderr
    model = torch.export.load(reader.folder / "model.pt2").module()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    reported = reader.run("report", address)
    assert reported.returncode == 0, reported.stderr
    assert server.read("team/run/report.html") == Path(reported.stdout.strip()).read_bytes()
    assert not secrets_in(tmp_path)
    for name in names:
        assert not any(secret in server.read(f"team/run/{name}") for secret in (SECRET.encode(), b"s3cr%2F"))
    assert json.loads(server.read("team/run/run.json"))["settings"]["out"].startswith("s3://***@bucket/team")


def _complete(address: str) -> dict[int, object]:
    """When each trial of the run was complete, as this machine sees it, which has none but the store."""
    try:
        trials = ac.load_run(address).study.trials
    except ac.UsageError:
        return {}  # the reference is not there yet
    return {t.number: t.datetime_complete for t in trials if t.number and t.state == TrialState.COMPLETE}


class Ending(ac.Progress):
    """Ends the server when the first trial has ended."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def trial_end(self, end: TrialEnd) -> None:
        if end.number == 1:
            self.server.server.stop()


def test_a_store_that_ends_during_a_search_ends_it_with_the_remedy_and_the_same_call_goes_on(
    tmp_path: Path, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("autocompress.engine.saving.PATIENCE_SECONDS", 0.0)
    rows = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    dataset = torch.utils.data.TensorDataset(rows, (rows[:, 0] > 0).long())
    task = ac.Task(
        model=lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)),
        train=torch.utils.data.DataLoader(dataset, batch_size=32),
        recipe=ac.Recipe(epochs=1),
        name="tiny",
    )
    options = {"methods": ["alcn"], "constraints": [], "trials": 3, "workers": 1, "sampler": "random"}
    with serving() as server:
        address, ending = server.address("run"), Ending(server)
        with pytest.raises(
            ac.AutocompressError, match=r"failed: .* \(everything that finished lies"
        ) as ended:
            ac.search(task, out=address, progress=ending, **options)
    copy = Path(str(ended.value).split("lies in '")[1].partition("'")[0])
    assert (copy / "run.json").is_file()
    assert not [secret for secret in (SECRET, KEY) if secret in str(ended.value)]
    with serving(server.port):
        result = ac.search(task, out=address, progress=ac.Progress(), **options)
        ended_well = [t for t in result.study.trials if t.state == TrialState.COMPLETE and t.number]
        assert ended_well[0].number == 1
        assert len(ended_well) == 3
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        assert ac.load_run(address).to_json() == result.to_json()
