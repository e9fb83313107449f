"""Folders of a run on a machine that does not see them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autocompress.distribute.folders import Folders, serving


def test_a_machine_that_sees_a_run_uses_its_folders_and_a_ray_of_one_machine_serves_none(
    tmp_path: Path, shared_ray: None
) -> None:
    with serving(tmp_path, cluster=False) as served:
        assert served is None
    with serving(tmp_path, cluster=True) as served:
        folders = Folders(tmp_path, served)
        assert folders.root == folders.disk == tmp_path
        (tmp_path / "trials/0001").mkdir(parents=True)
        with folders.fetched([tmp_path / "trials/0001"]):
            folders.send(tmp_path / "trials/0001")
        assert (tmp_path / "trials/0001").is_dir()
    assert not list(tmp_path.glob(".computed/*"))


def test_another_machine_has_copies_for_a_while_and_sends_what_it_made_as_a_whole(
    tmp_path: Path, shared_ray: None
) -> None:
    parent = tmp_path / "trials/0001"
    parent.mkdir(parents=True)
    (parent / "manifest.json").write_text("parent")
    with serving(tmp_path, cluster=True) as served:
        assert served is not None
        folders = Folders(tmp_path, replace(served, mark=tmp_path / "nowhere"))
        own, gone, made = (folders.root / "trials" / name for name in ("0001", "0002", "0003"))
        assert folders.root != tmp_path
        for content in ("first", "second"):  # the same trial, run again
            with folders.fetched([own, gone]):
                assert (own / "manifest.json").read_text() == "parent"
                assert not gone.exists()
                folders.send(made)  # of a model that was shut out there is none
                made.mkdir()
                (made / content).write_text(content)
                folders.send(made)
            assert not folders.root.exists()
            assert folders.disk.is_dir()
            assert [file.name for file in (tmp_path / "trials/0003").iterdir()] == [content]
        assert folders.exists(str(parent))
        assert not folders.exists(str(tmp_path / "trials/0002"))
