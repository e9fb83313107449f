"""Storage URLs: what of them may be read, and which driver they need."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.engine.folder import RunFolder
from autocompress.engine.settings import Settings
from autocompress.study import check_storage, masked, secrets_of, sqlite_url, unmasked


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("sqlite:///runs/study.db", "sqlite:///runs/study.db"),
        ("sqlite:///x.db?timeout=20", "sqlite:///x.db?timeout=20"),
        ("sqlite:////tmp/x.db?timeout=20&password=s3cret", "sqlite:////tmp/x.db?password=***&timeout=20"),
        ("postgresql://user@host/x", "postgresql://user@host/x"),
        ("postgresql://user:s3cret@host:1/x", "postgresql://user:***@host:1/x"),
        ("postgresql://user:s3%40cret@host/x?sslpassword=s3", "postgresql://user:***@host/x?sslpassword=***"),
        (
            "mysql+pymysql://user:s3cret@host/x?AccessToken=s3",
            "mysql+pymysql://user:***@host/x?AccessToken=***",
        ),
        ("postgresql://user:s3cret@host:port/x", "postgresql://user:***@host:port/x"),
    ],
)
def test_no_secret_of_a_url_is_shown(storage: str, shown: str) -> None:
    assert masked(storage) == shown
    assert masked(shown) == shown
    assert bool(secrets_of(storage)) == ("***" in shown)


def test_a_password_is_not_written_and_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = "postgresql://user:s3cret@host/x"
    folder = RunFolder(tmp_path / "run")
    settings = Settings(storage=storage)
    folder.write(settings, settings.identity(), {})
    text = folder.json.read_text()
    assert "s3cret" not in text
    stored = json.loads(text)["settings"]["storage"]
    with pytest.raises(ac.UsageError, match=r"'postgresql://user:\*\*\*@host/x' .* AUTOCOMPRESS_STORAGE"):
        unmasked(stored)
    monkeypatch.setenv("AUTOCOMPRESS_STORAGE", "postgresql://user:other@elsewhere/x")
    with pytest.raises(ac.UsageError, match=r"which is 'postgresql://user:\*\*\*@elsewhere/x'"):
        unmasked(stored)
    monkeypatch.setenv("AUTOCOMPRESS_STORAGE", storage)
    assert unmasked(stored) == storage
    assert unmasked("sqlite:///x.db") == "sqlite:///x.db"


def test_passwords_that_older_versions_wrote_are_not_read_aloud(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = Settings(storage="postgresql://user:s3cret@host/x")
    folder.write(settings, settings.identity(), {})
    folder.json.write_text(folder.json.read_text().replace("***", "s3cret"))
    assert "s3cret" not in json.dumps(folder.read())


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, package, None)
    for scheme in ("postgresql", "postgres"):
        with pytest.raises(
            ac.UsageError, match=r"no package psycopg \(pip install 'autocompress\[postgres\]'\)"
        ) as raised:
            check_storage(f"{scheme}://user:s3cret@host/x")
        assert "s3cret" not in str(raised.value)


def test_what_a_storage_says_is_shown_without_its_secrets() -> None:
    with pytest.raises(ac.UsageError, match=r"storage '.*\*\*\*.*' cannot be used") as raised:
        check_storage("sqlite:////no/such/folder/x.db?password=s3cret")
    assert "s3cret" not in str(raised.value)


def test_a_folder_may_be_called_as_it_likes(tmp_path: Path) -> None:
    odd = tmp_path / "a?b#c d%20"
    odd.mkdir()
    check_storage(sqlite_url(odd))
    assert [file.name for file in odd.iterdir()] == ["study.db"]


def test_a_damaged_file_is_told_as_such(tmp_path: Path) -> None:
    for content in (b"no database at all, whatever it is called" * 99, b"SQLite format 3\0" + bytes(5000)):
        (tmp_path / "study.db").write_bytes(content)
        with pytest.raises(ac.UsageError, match=r"cannot be used: .*(is not a database|malformed)") as raised:
            check_storage(sqlite_url(tmp_path))
        assert "\n" not in str(raised.value)
