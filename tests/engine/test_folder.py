"""Where a run may be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.engine.folder import RunFolder


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/a/run", "hdfs://host:9000/run"])
def test_an_object_store_is_no_folder_and_the_remedy_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = rf"^RUN must be a folder but got '{address}'.*\(mount .* or copy RUN there when"
    with pytest.raises(ac.UsageError, match=said):
        ac.search("digits", out=address)
    with pytest.raises(ac.UsageError, match=said):
        ac.load_run(address)
    with pytest.raises(ac.UsageError, match=said):
        ac.load_run(Path(address))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["runs/mine", "/data/a:b/run", "C:/runs/mine", "with spaces: /run"])
def test_other_paths_are_folders(path: str) -> None:
    assert RunFolder(Path(path)).json == Path(path) / "run.json"


@pytest.mark.parametrize("what", ["mkdir", "open"])
def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder.path))

    # The lock is opened; nobody can keep root from writing.
    monkeypatch.setattr(Path if what == "mkdir" else os, what, refused)
    said = rf"^out must be .* written but: .*Read-only file system: '{folder.path}' \(give another out\)"
    with pytest.raises(ac.UsageError, match=said), folder.locked():
        pass
