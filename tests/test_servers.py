"""Studies in databases that are servers, where one is installed: started here, on a port of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from optuna.trial import TrialState

from autocompress.errors import SettingsError
from autocompress.study import SearchStudy, check_storage
from autocompress.trial import Stage, TrialConfig
from tests.report.runs import BASE, WrittenRun, metrics
from tests.report.test_dashboard import Served

# Where Debian has what is not on the path.
_PLACES = (
    *os.environ["PATH"].split(os.pathsep),
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))),
    "/usr/sbin",
)


def program(*names: str) -> str:
    """The first of some programs that is installed; skips the test where none is."""
    for name in names:
        program = shutil.which(name, path=os.pathsep.join(_PLACES))
        if program is not None:
            return program
    pytest.skip(f"{' or '.join(names)} is not installed")


def driver(module: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"the driver {module} is not installed")


def account(name: str) -> dict[str, str]:
    """Servers refuse to be run by root: the account that Debian makes for them, as `subprocess` takes it."""
    return {"user": name} if os.geteuid() == 0 else {}


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], port: int, user: dict[str, str], log: Path, stop: signal.Signals
) -> Iterator[None]:
    """A server, until it is no longer needed; it listens before anything is done.

    Args:
        command: that runs it.
        port: that it listens on.
        user: whose it is.
        log: what it says.
        stop: the signal at which it ends though clients are connected.
    """
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, **user)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            yield
        finally:
            server.send_signal(stop)
            server.wait()


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    initdb, postgres = program("initdb"), program("postgres")
    driver("psycopg")
    data, port, user = _data(tmp_path, "postgres"), free_port(), account("postgres")
    made = [initdb, "-D", str(data), "-U", "me", "-A", "trust", "--no-sync"]
    subprocess.run(made, check=True, capture_output=True, cwd=data, **user)
    settings = [
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        f"unix_socket_directories={data}",
        "-c",
        "fsync=off",
    ]
    with running(
        [postgres, "-D", str(data), "-p", str(port), *settings], port, user, tmp_path / "log", signal.SIGINT
    ):
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"


@pytest.fixture
def mysql(tmp_path: Path) -> Iterator[str]:
    install, server = program("mariadb-install-db", "mysql_install_db"), program("mariadbd", "mysqld")
    driver("pymysql")
    data, port, user = _data(tmp_path, "mysql"), free_port(), account("mysql")
    options = ["--no-defaults", f"--datadir={data}"]
    made = [install, *options, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(made, check=True, capture_output=True, cwd=data, **user)
    listening = [
        "--bind-address=127.0.0.1",
        f"--port={port}",
        f"--socket={data}/socket",
        f"--pid-file={data}/pid",
    ]
    with running([server, *options, *listening], port, user, tmp_path / "log", signal.SIGTERM):
        made_study = [
            "mariadb",
            "--no-defaults",
            f"--socket={data}/socket",
            "-u",
            "root",
            "-e",
            "CREATE DATABASE runs",
        ]
        subprocess.run(made_study, check=True, capture_output=True, **user)
        yield f"mysql+pymysql://root@127.0.0.1:{port}/runs"


def _data(folder: Path, owner: str) -> Path:
    """A folder that a server's account may write, however deep it lies."""
    data = folder / "data"
    data.mkdir()
    if os.geteuid() == 0:
        shutil.chown(data, owner)
        for above in (folder, *folder.parents[:3]):
            above.chmod(above.stat().st_mode | 0o011)
    return data


@pytest.mark.parametrize("server", ["postgresql", "mysql"])
def test_a_study_in_a_server_is_searched_resumed_and_shown(
    server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = request.getfixturevalue(server)
    check_storage(url)
    run = WrittenRun(tmp_path / "mine", storage=url)
    study = run.study
    assert [trial.state for trial in study.study.trials].count(TrialState.COMPLETE) == 5
    assert [point.trial for point in run.result.front] == [1, 2, 3]
    study.record_rung(6, 1, metrics(0.9, 0.5))
    assert study.rung(1) == {6: metrics(0.9, 0.5)}
    # A long front: MySQL takes 65,535 bytes of a value.
    study.set_test_metrics({number: {"accuracy": 0.5, "f1": 0.25} for number in range(400)})
    assert study.test_metrics()[399] == {"accuracy": 0.5, "f1": 0.25}
    resumed = SearchStudy(url, "run", study.objectives, study.constraints, create=False)
    assert resumed.close_leftovers() == 1
    assert resumed.counts() == {"complete": 4, "fail": 1, "pruned": 0, "interrupted": 1}
    again = resumed.ask()
    assert again.suggest_categorical("method", ["alcn", "lc"]) == "alcn"
    resumed.record_config(again.number, TrialConfig((Stage("alcn", {}),)))
    resumed.complete(again.number, metrics(0.96, 0.4), BASE, {"config": TrialConfig().to_json()})
    detail = Served(run).detail()
    assert [trial["number"] for trial in detail["best_trials"]] == [1, 2, 3]
    assert "Compresses trial 2 with lc" in detail["trials"][3]["note"]["body"]


@pytest.mark.parametrize("server", ["postgresql", "mysql"])
def test_a_server_that_is_not_there_is_told_in_one_line(server: str) -> None:
    module = {"postgresql": "psycopg", "mysql": "pymysql"}[server]
    driver(module)
    with pytest.raises(SettingsError, match="cannot be used") as refused:
        check_storage(f"{server}+{module}://me@127.0.0.1:{free_port()}/runs")
    assert "\n" not in str(refused.value)
