"""The folders of a run as workers reach them: the driver's own, or, on a machine that does not see those,
copies of what a job needs, which Ray sends."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autocompress.checkpoint.store import aside_of
from autocompress.sharing import COMPUTED


class FolderServer:
    """Reads and writes checkpoints of a run, on the machine where the run is.

    Args:
        root: the run folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> dict[str, bytes] | None:
        """The files of a checkpoint; None where it is not there, any more."""
        try:
            return _files(self.root / name)
        except FileNotFoundError:
            return None

    def write(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write a checkpoint, which appears whole or not at all."""
        _put(self.root / name, files)

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        return Path(path).exists()


@dataclass(frozen=True)
class Served:
    """How workers reach a run on another machine.

    Args:
        server: Ray's handle of a `FolderServer`.
        mark: a file in the run folder, which is nowhere else.
    """

    server: Any
    mark: Path


@contextlib.contextmanager
def serving(root: Path, cluster: bool) -> Iterator[Served | None]:
    """Serve a run folder of this machine to others, as long as it takes; None where there are no others.

    Args:
        root: the run folder.
        cluster: whether machines may join; else those that are there now count.
    """
    if not cluster and sum(node["Alive"] for node in ray.nodes()) < 2:
        yield None
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    server = ray.remote(FolderServer).options(num_cpus=0, scheduling_strategy=here).remote(root)
    mark = root / COMPUTED / f"here-{uuid.uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield Served(server, mark)
    finally:
        mark.unlink(missing_ok=True)
        with contextlib.suppress(RayError, RuntimeError):  # of a Ray that is gone, as is the server then
            ray.kill(server)


class Folders:
    """The folders of a run for the jobs of one process.

    Args:
        root: the run folder on the driver's machine.
        served: how others reach it; None where there are none.

    Attributes:
        server: Ray's handle of what has the run; None where this machine sees it.
        root: the run folder, or one with copies of parts of it, which is there inside of `fetched`.
    """

    def __init__(self, root: Path, served: Served | None = None) -> None:
        self.server = None if served is None or served.mark.exists() else served.server
        self.root = root
        if self.server is not None:
            self.root = Path(tempfile.gettempdir()) / f"autocompress-{uuid.uuid4().hex}"

    @property
    def disk(self) -> Path:
        """A folder that is always there, on the disk that jobs write to."""
        return self.root if self.server is None else self.root.parent

    @contextlib.contextmanager
    def fetched(self, checkpoints: Iterable[Path] = ()) -> Iterator[None]:
        """Have checkpoints here for a while; those that are gone are missed by who needs them.

        Args:
            checkpoints: folders in `root`.
        """
        if self.server is None:
            yield
            return
        self.root.mkdir(mode=0o700)
        try:
            for checkpoint in dict.fromkeys(checkpoints):
                files = ray.get(self.server.read.remote(self._name(checkpoint)))
                if files is not None:
                    _put(checkpoint, files)
            yield
        finally:
            # Not left until the process ends, which Ray ends by force.
            shutil.rmtree(self.root, ignore_errors=True)

    def send(self, checkpoint: Path) -> None:
        """Bring a checkpoint that was written here, if it was, to where the run is."""
        if self.server is not None and checkpoint.is_dir():
            ray.get(self.server.write.remote(self._name(checkpoint), _files(checkpoint)))

    def exists(self, path: str) -> bool:
        """Whether a file is there on the driver's machine."""
        if self.server is None:
            return Path(path).exists()
        there: bool = ray.get(self.server.exists.remote(path))
        return there

    def _name(self, checkpoint: Path) -> str:
        return checkpoint.relative_to(self.root).as_posix()


def _files(folder: Path) -> dict[str, bytes]:
    """What files of a folder hold, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def _put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files as a new folder, which appears whole or not at all, in the place of one that is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(folder)
    aside.mkdir()
    for name, content in files.items():
        (aside / name).write_bytes(content)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(aside, folder)
