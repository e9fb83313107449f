"""The run folder: its `run.json`, the settings it was made with, and its lock."""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autocompress.checkpoint.store import REFERENCE, TAKEN_OVER, TRIALS
from autocompress.engine.changes import DIGESTS, changed
from autocompress.engine.mirror import ARTIFACTS, LOCK, REPORT, RUN, STUDY, Mirror
from autocompress.engine.settings import Settings
from autocompress.errors import SettingsError, StorageError, one_line
from autocompress.remote import is_address
from autocompress.sharing import COMPUTED
from autocompress.study import masked

SCHEMA = 1


class RunFolder:
    """Paths and settings of one run.

    Args:
        path: the folder; it need not exist.
        mirror: the run in a store, where `path` is its copy on this machine.

    Attributes:
        shown: what messages call the run: the folder, or the address in the store without its secrets.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        self.path, self.mirror = path, mirror
        self.shown = str(path) if mirror is None else mirror.store.shown
        self.json = path / RUN
        self.reference = path / REFERENCE
        self.trials = path / TRIALS
        self.artifacts = path / ARTIFACTS
        self.taken_over = path / TAKEN_OVER
        self.computed = path / COMPUTED
        self.study = path / STUDY
        self.report = path / REPORT

    @property
    def address(self) -> str | None:
        """Where the run is in a store, without secrets; None where it is in a folder."""
        return None if self.mirror is None else self.shown

    def show(self, path: Path) -> str:
        """What messages call a file or folder of the run."""
        if self.mirror is None:
            return str(path)
        return f"{self.shown.partition('?')[0]}/{path.relative_to(self.path).as_posix()}"

    def upload(self, path: Path) -> None:
        """Bring a file or folder of the run to its store, if it is in one.

        Raises:
            StorageError: the store fails; the copy on this machine, which is named, has it.
        """
        if self.mirror is not None:
            try:
                self.mirror.put(path.relative_to(self.path).as_posix())
            except StorageError as error:
                raise StorageError(f"{one_line(error)} (on this machine it is '{path}')") from error

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.json.is_file()

    def read(self, needed: Iterable[str] = ("id", "settings")) -> dict[str, Any]:
        """What `run.json` says.

        Args:
            needed: fields that it must have.

        Raises:
            SettingsError: the folder is no run, or of another version.
        """
        if not self.exists:
            raise SettingsError(f"RUN must be a folder that a search wrote but '{self.shown}' is not.")
        try:
            data: dict[str, Any] = json.loads(self.json.read_text())
        except ValueError as error:
            raise SettingsError(f"'{self.show(self.json)}' must be JSON but: {one_line(error)}") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise SettingsError(f"RUN must be of schema {SCHEMA} but '{self.shown}' is of {schema!r}.")
        wrong = _wrong_field(data, needed)
        if wrong is not None:
            raise SettingsError(f"'{self.show(self.json)}' must be as a search wrote it but {wrong}.")
        for part in (data.get("identity", {}), data["settings"]):
            # Older versions wrote passwords.
            if part.get("storage"):
                part["storage"] = masked(part["storage"])
        return data

    def refuse_other_settings(self, current: Mapping[str, Any], *, replayed: bool = False) -> None:
        """Refuse to continue a run with what makes it another one, naming all that changed.

        Args:
            current: what `identity` says of the search that is to continue it.
            replayed: one of its trials is trained again, for which its search spaces do not matter.

        Raises:
            SettingsError: a setting or the task differs, or the folder holds something else.
        """
        if not self.exists:
            if self.path.is_dir() and any(p.name != LOCK for p in self.path.iterdir()):
                raise SettingsError(
                    f"out must be a new folder or an earlier run but '{self.shown}' holds other files."
                )
            return
        stored = self.read(("id", "settings", "identity", "versions"))
        made, given = stored["identity"], json.loads(json.dumps(current))
        way, otherwise = ("replay", "") if replayed else ("continue", ", or choose another out")
        missing = sorted(given.keys() - made.keys())
        if missing:
            raise SettingsError(
                f"the run in '{self.shown}' was made by an older version of autocompress, which did not "
                f"store {', '.join(missing)} ({way} it with that version{otherwise})."
            )
        for name, value in given.items():
            if name != DIGESTS and made[name] != value:
                raise SettingsError(
                    f"{name} of the run in '{self.shown}' is {made[name]!r} but got {value!r} "
                    f"({way} it with the same settings{otherwise})."
                )
        changes = changed(made[DIGESTS], given[DIGESTS], spaces=not replayed)
        if changes:
            raise SettingsError(
                f"{_listed([what for what, _ in changes])} changed since the run in '{self.shown}' was made"
                f"{_other_versions(stored['versions'])} "
                f"({way} it with the same {_listed([same for _, same in changes])}{otherwise})."
            )

    def write(self, settings: Settings, identity: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Write `run.json`, atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        packages = ("autocompress", "torch", "torchvision", "optuna", "ray", "numpy", "safetensors")
        data = {
            "schema": SCHEMA,
            **(self._named() if self.exists else self._new_names(settings)),
            "identity": dict(identity),
            "settings": settings.to_json(),
            "versions": _versions(packages),
            **extra,
        }
        aside = self.json.with_suffix(".tmp")
        aside.write_text(json.dumps(data, indent=2) + "\n")
        os.replace(aside, self.json)

    def _named(self) -> dict[str, str]:
        """What the run and its study are called since they were begun, wherever the folder is now."""
        data = self.read()
        return {name: data[name] for name in ("id", "study") if name in data}

    def _new_names(self, settings: Settings) -> dict[str, str]:
        run = uuid.uuid4().hex[:8]
        name = self.path.resolve().name or "run"
        # A storage of its own holds one study; in others two runs may be called alike.
        return {"id": run, "study": name if settings.storage is None else f"{name}-{run}"}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second search off the folder.

        Raises:
            SettingsError: another search holds it, or it cannot be made.
        """
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise SettingsError(
                f"RUN must not be searched by two processes but '{self.shown}' is in use."
            ) from error
        except OSError as error:
            raise SettingsError(
                f"out must be a folder that can be made and written but: {one_line(error)} "
                "(give another out)."
            ) from error
        try:
            yield
        finally:
            lock.release()


def run_folder(path: str | Path) -> RunFolder:
    """The folder of a run; of one in a store, that of its copy here, in which nothing need be yet.

    Args:
        path: the folder, or an address as `s3://bucket/run`.

    Raises:
        SettingsError: nobody answers at the address.
    """
    if not is_address(path):
        return RunFolder(Path(path))
    mirror = Mirror(path)
    return RunFolder(mirror.folder, mirror)


def opened_run(path: str | Path, note: Callable[[str], None] | None = None) -> RunFolder:
    """The folder of a run to read, brought to what its store has where it is in one.

    Args:
        path: the folder, or an address as `s3://bucket/run`.
        note: hears how far a download is; None prints that on standard error.

    Raises:
        SettingsError: nobody answers at the address.
        StorageError: the store failed.
    """
    folder = run_folder(path)
    if folder.mirror is not None:
        folder.mirror.pull(note or (lambda text: print(text, file=sys.stderr)))
    return folder


def _wrong_field(data: Mapping[str, Any], needed: Iterable[str]) -> str | None:
    """What of `run.json` is not as it should be, or None.

    Objectives, constraints and the reference are there once that is trained.
    """
    for name in needed:
        if name not in data:
            return f"{name} is missing"
    kinds = {"id": str, "study": str, "identity": dict, "settings": dict, "versions": dict}
    kinds |= {"objectives": list, "constraints": list, "reference": dict}
    for name, kind in kinds.items():
        if name in data and not isinstance(data[name], kind):
            return f"{name} is {data[name]!r}"
    objectives = data.get("objectives", [])
    if not all(isinstance(item, dict) and item.keys() == {"metric", "direction"} for item in objectives):
        return f"objectives are {objectives!r}"
    if "objectives" in data and not isinstance(data.get("reference", {}).get("metrics"), dict):
        return f"reference is {data.get('reference')!r}"
    storages = [part.get("storage") for part in (data["settings"], data.get("identity", {}))]
    texts = [*data.get("constraints", ()), *storages]
    wrong = [text for text in texts if not isinstance(text, str | None)]
    return f"a text is {wrong[0]!r}" if wrong else None


def _versions(packages: Iterable[str]) -> dict[str, str]:
    return {"python": platform.python_version()} | {p: version(p) for p in packages}


def _other_versions(made: Mapping[str, str]) -> str:
    """What the run was made with where that alone may be why its code or its graph seems another."""
    here = _versions(("torch",))
    others = [f"{name} {made[name]}" for name in here if _minor(made[name]) != _minor(here[name])]
    return f" with {_listed(others)}" if others else ""


def _minor(text: str) -> list[str]:
    return text.split(".")[:2]


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them, each once."""
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} and {last}" if most else last
