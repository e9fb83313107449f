"""Machines that Ray would not start on by itself, and the memory of workers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.distribute import surroundings
from autocompress.distribute.surroundings import give_token, has_token, memory_share, ray_folder


def in_tmpdir(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def short() -> Path:
    """A folder whose path is short enough for sockets, as pytest's are not."""
    return Path(tempfile.mkdtemp(dir="/tmp"))


def test_rays_own_folder_will_do_where_it_is_short_and_the_users(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_tmpdir(short, monkeypatch)
    assert ray_folder() is None


def test_long_paths_are_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_tmpdir(tmp_path / ("long" * 20), monkeypatch)
    assert ray_folder() == f"/tmp/ray-{os.getuid()}"


def test_a_folder_for_temporary_files_that_takes_none_is_left(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_tmpdir(short, monkeypatch)
    monkeypatch.setenv("TMPDIR", str(short / "file"))
    (short / "file").touch()
    assert ray_folder() == f"/tmp/ray-{os.getuid()}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_another_users_folder_is_left_to_them(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_tmpdir(short, monkeypatch)
    (short / "ray").mkdir()
    os.chown(short / "ray", 1, 1)
    assert ray_folder() == str(short / f"ray-{os.getuid()}")


def test_where_no_folder_will_do_one_line_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_usable", lambda folder: False)
    with pytest.raises(ac.UsageError, match=r"^RAY_TMPDIR must name a writable folder .* at most 41 char"):
        ray_folder()


def test_a_home_that_cannot_be_written_needs_no_token_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "kept")
        monkeypatch.delenv(name)  # what is set in the meantime is taken back
    monkeypatch.setenv("HOME", "/dev/null")
    give_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_MODE" not in os.environ
    token = os.environ["RAY_AUTH_TOKEN"]
    give_token()
    assert os.environ["RAY_AUTH_TOKEN"] == token


def test_a_user_without_a_home_has_no_token_until_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "kept")
        monkeypatch.delenv(name)
    monkeypatch.setattr(surroundings.Path, "home", no_home)
    assert not has_token()
    give_token()
    assert has_token()


def test_workers_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_free_of_machine", lambda: 100 << 30)
    monkeypatch.setattr(surroundings, "_free_of_group", lambda: 20 << 30)
    assert memory_share(2) == 9 << 30
    assert memory_share(1000) == 1 << 30
    monkeypatch.setattr(surroundings, "_free_of_machine", lambda: None)
    monkeypatch.setattr(surroundings, "_free_of_group", lambda: None)
    assert memory_share(2) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_worker_that_outgrows_its_share_fails_with_what_it_lacks() -> None:
    script = (
        "import torch\n"
        "from pathlib import Path\n"
        "from autocompress.distribute.surroundings import limit_memory\n"
        "from autocompress.distribute.worker import _kind\n"
        "limit_memory(1 << 28)\n"
        "torch.ones(1 << 24)\n"
        "for take in (lambda: torch.ones(1 << 28), lambda: bytearray(1 << 30)):\n"
        "    try:\n"
        "        take()\n"
        "    except Exception as error:\n"
        "        print(_kind(error, Path('.')))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["memory", "memory"]
