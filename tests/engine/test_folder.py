"""Where a run may be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import autocompress as ac
from autocompress.engine.folder import RunFolder


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
