"""A run in an object store, and its copy on this machine, on which everything else works.

A store has no renames and no locks. So what a search writes appears there in an order in which a run that is
cut off at any moment can be opened and continued: checkpoints before the study that tells of them, of each
the manifest last; a study as one snapshot; and what a study no longer needs is deleted after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock, Timeout

from autocompress.checkpoint.store import (
    MANIFEST,
    REFERENCE,
    TAKEN_OVER,
    TRIALS,
    aside_of,
    kept_trials,
    remove_checkpoint,
)
from autocompress.errors import SettingsError, one_line
from autocompress.remote.address import place_digest
from autocompress.remote.store import RemoteError, RemoteFile, RemoteStore

RUN, STUDY, REPORT, LOCK = "run.json", "study.db", "report.html", ".lock"
ARTIFACTS = "artifacts"
# Says which search wrote to the store last: its copy goes on as it is, and others start anew.
_WRITER = "writer.json"
# The last file of a folder of copies: in a store even an empty folder must be told from none.
_COMPLETE = "complete"
# In the place of a time: what is taken over is written once.
_ONCE = -1
# Files at a time, each of which waits most for answers.
_DOWNLOADS = 8
_SAY_SECONDS = 5.0
# Between two looks at a store for who watches a search that runs elsewhere.
_FOLLOW_SECONDS = 10.0
# That a study may be in use by who writes to it, which never takes so long.
_LOCKED_SECONDS = 60.0
# A checkpoint that is deleted while it is uploaded has the upload begin anew; seldom twice.
_MOST_ROUNDS = 10
_UNIT = re.compile(rf"({REFERENCE}|{TRIALS}/\d+|{TAKEN_OVER})/(.+)")


class Mirror:
    """A run in a store and its copy in the cache of this user.

    Args:
        address: of the run, as `pyarrow.fs` takes it.

    Attributes:
        store: the run there.
        folder: the run here.

    Raises:
        SettingsError: nobody answers at the address, or no folder can be written for the copy.
    """

    def __init__(self, address: str | Path) -> None:
        self.store = RemoteStore(address)
        self.home = cache_folder() / place_digest(self.store.address)
        name = unquote(self.store.root.rpartition("/")[2])
        self.folder = self.home / (re.sub(r"[^\w.-]", "_", name).lstrip(".") or "run")
        # Checkpoints that the store has, and what it has of files that change, while a search writes there.
        self._there: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._artifacts: set[str] = set()

    def pull(self, note: Callable[[str], None]) -> None:
        """Bring the copy to what the store has, for who reads it; of a search that runs on it, it is left.

        Args:
            note: hears how far it is, where that takes long.

        Raises:
            RemoteError: the store fails.
        """
        with self._alone(note):
            if not self._is_searched():
                self._renew(note)

    def follow(self, note: Callable[[str], None]) -> None:
        """Bring the copy to what the store has again and again, in a thread, until this process ends.

        Args:
            note: hears that the store fails, once until it is there again.
        """
        threading.Thread(target=self._pull_forever, args=[note], name="follower", daemon=True).start()

    def _pull_forever(self, note: Callable[[str], None]) -> None:
        fails = False
        while True:
            time.sleep(_FOLLOW_SECONDS)
            try:
                self.pull(lambda text: None)
                fails = False
            except RemoteError as error:
                if not fails:
                    note(f"{one_line(error)}; what is shown is older")
                fails = True

    def begin(self, session: str, note: Callable[[str], None]) -> None:
        """Bring the copy to what the store has, for a search that holds both their locks and goes on with it.

        Args:
            session: names the search.
            note: hears how far that is, where it takes long, and what became of a copy that is of no use.

        Raises:
            RemoteError: the store fails.
        """
        with self._alone(note):
            last = self._renew(note)
            self.sessions = [*(self.sessions or [last]), session]
            self._unsaved.touch()
        self.session = session
        files = self.store.files()
        self._there = _written(files)
        self._artifacts = {name for name in files if name.startswith(f"{ARTIFACTS}/")}
        parts = {match[1] for name in files if (match := _UNIT.fullmatch(name))}
        for unit in parts - self._there.keys():
            self.store.remove_folder(unit)  # of an upload or a deletion that was cut off
        self._digests = {}
        self.is_writer = False

    def push(self, check: Callable[[], None]) -> None:
        """Bring the store to what the copy has.

        Args:
            check: called again and again meanwhile; raises where the store is another's now.

        Raises:
            RemoteError: the store fails.
        """
        check()
        if not self.is_writer:
            self.store.write(_WRITER, json.dumps({"session": self.session}).encode())
            # What was written there before this search is no more what the copy goes on from.
            self.sessions, self.is_writer = [self.session], True
        for _ in range(_MOST_ROUNDS):
            before = self._units().keys()
            study = self._snapshot()
            here = self._units()
            if not self._upload_new([u for u, at in here.items() if self._there.get(u) != at], check):
                continue
            if study is not None:
                check()
                self._upload_changed(study, STUDY)
            for name in (RUN, REPORT):
                if (self.folder / name).is_file():
                    self._upload_changed(self.folder / name, name)
            for unit in sorted(self._there.keys() - before):
                check()
                self._remove(unit)
            return
        raise RemoteError(f"'{self.store.shown}' is too slow: checkpoints are deleted before they are there")

    def saved(self) -> None:
        """Take note that the store has all that the copy has."""
        self._unsaved.unlink(missing_ok=True)

    def put(self, name: str) -> None:
        """Upload a file of the copy, or all files of a folder of it.

        Args:
            name: relative to the run.

        Raises:
            RemoteError: the store fails.
        """
        path = self.folder / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                self.store.upload(file, file.relative_to(self.folder).as_posix())

    # ------------------------------------------------------------------ from the store

    def _renew(self, note: Callable[[str], None]) -> str:
        """Bring the copy to what the store has, unless it is what that was written from; who wrote last."""
        last = self._last_writer()
        if self.sessions and (self.folder / RUN).is_file() and last in self.sessions:
            return last
        described = self.store.read(RUN)
        if self._unsaved.is_file() or self._is_other_run(described):
            self._set_aside(note)
        self.sessions = []
        self.folder.mkdir(parents=True, exist_ok=True)
        if described is not None:
            self._download(described, note)
        return last

    def _last_writer(self) -> str:
        content = self.store.read(_WRITER)
        try:
            said = json.loads(content or b"{}")
        except ValueError:
            return ""
        return str(said.get("session", "")) if isinstance(said, dict) else ""

    def _is_other_run(self, described: bytes | None) -> bool:
        """Whether the copy is of another run than the store's, which was deleted there."""
        here = self.folder / RUN
        return here.is_file() and (described is None or _id(described) != _id(here.read_bytes()))

    def _set_aside(self, note: Callable[[str], None]) -> None:
        """Delete a copy; where it has what no store has, it stays under another name."""
        if not self.folder.is_dir():
            self._unsaved.unlink(missing_ok=True)
            return
        if self._unsaved.is_file() and (self.folder / RUN).is_file():
            aside = self.home / f"{self.folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
            self.folder.rename(aside)
            note(
                f"'{self.store.shown}' was continued elsewhere, or deleted; what a search here had not "
                f"uploaded before stays in '{aside}'"
            )
        else:
            shutil.rmtree(self.folder)
        self._unsaved.unlink(missing_ok=True)

    def _download(self, described: bytes, note: Callable[[str], None]) -> None:
        """Fetch what the copy lacks or has otherwise, and delete what the store has no more."""
        study = self._fetched_aside(STUDY)  # first, as checkpoints of which it tells are there by then
        report = self._fetched_aside(REPORT)
        files = self.store.files()
        units, written, here = _whole(files), _written(files), self._units()
        wanted = {unit: names for unit, names in units.items() if here.get(unit) != written[unit]}
        for unit in (here.keys() - units.keys()) | (here.keys() & wanted.keys()):
            remove_checkpoint(self.folder / unit)
        artifacts = {name for name in files if re.fullmatch(rf"{ARTIFACTS}/[^/]+", name) and _is_plain(name)}
        new = [name for name in sorted(artifacts) if not (self.folder / name).is_file()]
        (self.folder / TRIALS).mkdir(exist_ok=True)
        (self.folder / ARTIFACTS).mkdir(exist_ok=True)
        size = sum(files[name].size for name in [*new, *(n for names in wanted.values() for n in names)])
        progress = _Told(f"downloading '{self.store.shown}'", size, note)
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            tasks = [
                pool.submit(self._fetch_unit, u, names, written[u], progress.add)
                for u, names in wanted.items()
            ]
            tasks += [pool.submit(self._fetch_file, name, progress.add) for name in new]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._replace(study, STUDY)
        self._replace(report, REPORT)
        aside = self.folder / f".{RUN}.tmp"
        aside.write_bytes(described)
        self._replace(aside, RUN)

    def _fetched_aside(self, name: str) -> Path | None:
        aside = self.folder / f".{name}.tmp"
        try:
            self.store.download(name, aside)
        except FileNotFoundError:
            aside.unlink(missing_ok=True)
            return None
        return aside

    def _replace(self, aside: Path | None, name: str) -> None:
        file = self.folder / name
        if aside is None:
            file.unlink(missing_ok=True)
            return
        if name == STUDY and file.is_file():
            with contextlib.suppress(sqlite3.DatabaseError):  # what is no database is seen by who opens it
                _copy_database(aside, file)  # so that who has it open sees what is new
                aside.unlink()
                return
        os.replace(aside, file)

    def _fetch_unit(self, unit: str, names: Iterable[str], written: int, each: Callable[[int], None]) -> None:
        target = self.folder / unit
        aside = aside_of(target)
        aside.mkdir()
        try:
            for name in names:
                file = aside / name.removeprefix(f"{unit}/")
                file.parent.mkdir(parents=True, exist_ok=True)
                self.store.download(name, file, each)
            if unit != TAKEN_OVER:
                os.utime(aside / MANIFEST, (written, written))
            os.replace(aside, target)
        except FileNotFoundError:
            if self.store.file(_last_file(unit)) is not None:
                raise
            # A search that runs elsewhere deleted it meanwhile, as better ones took its place.
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _fetch_file(self, name: str, each: Callable[[int], None]) -> None:
        aside = aside_of(self.folder / name)
        self.store.download(name, aside, each)
        os.replace(aside, self.folder / name)

    # ------------------------------------------------------------------ to the store

    def _units(self) -> dict[str, int]:
        """Folders of the copy that are there as a whole or not at all, and when each was written.

        That is the store's time, which the manifest of one that the store has bears here as well: of two
        machines that were cut off, each may have made a trial of the same number.
        """
        names = [REFERENCE, *(f"{TRIALS}/{number:04d}" for number in kept_trials(self.folder / TRIALS))]
        units: dict[str, int] = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # better ones take places at any time
                units[name] = int((self.folder / name / MANIFEST).stat().st_mtime)
        if (self.folder / TAKEN_OVER).is_dir():
            units[TAKEN_OVER] = _ONCE
        return units

    def _snapshot(self) -> Path | None:
        """The study as it is in one moment; None where it is in a storage of its own."""
        if not (self.folder / STUDY).is_file():
            return None
        copy = self.home / f"{STUDY}.snapshot"
        copy.unlink(missing_ok=True)
        _copy_database(self.folder / STUDY, copy)
        return copy

    def _upload_new(self, units: Iterable[str], check: Callable[[], None]) -> bool:
        """Upload checkpoints and pictures that the store lacks; whether they all were still there."""
        for unit in sorted(units):
            folder = self.folder / unit
            last = _last_file(unit)
            if unit in self._there:
                self._remove(unit)
            names = [f.relative_to(self.folder).as_posix() for f in sorted(folder.rglob("*")) if f.is_file()]
            try:
                for name in names:
                    check()
                    if name != last:
                        self.store.upload(self.folder / name, name)
                if unit == TAKEN_OVER:
                    self.store.write(last, b"-")
                else:
                    self.store.write(last, (self.folder / last).read_bytes())
                self._note_written(unit)
            except FileNotFoundError:
                if (folder / MANIFEST).is_file():
                    raise
                self.store.remove_folder(unit)
                return False
        for file in sorted((self.folder / ARTIFACTS).glob("[!.]*")):
            name = file.relative_to(self.folder).as_posix()
            if name not in self._artifacts:
                self.store.upload(file, name)
                self._artifacts.add(name)
        return True

    def _note_written(self, unit: str) -> None:
        file = self.store.file(_last_file(unit))
        if file is None:
            raise RemoteError(f"'{self.store.shown}' lost a file that was written there")
        if unit != TAKEN_OVER:
            os.utime(self.folder / unit / MANIFEST, (file.written, file.written))
        self._there[unit] = _ONCE if unit == TAKEN_OVER else file.written

    def _upload_changed(self, file: Path, name: str) -> None:
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if self._digests.get(name) != digest:
            self.store.write(name, content)
            self._digests[name] = digest

    def _remove(self, unit: str) -> None:
        self.store.remove(_last_file(unit))
        self.store.remove_folder(unit)
        self._there.pop(unit, None)

    # ------------------------------------------------------------------ on this machine

    @contextlib.contextmanager
    def _alone(self, note: Callable[[str], None]) -> Iterator[None]:
        """Keep other processes of this machine from changing the copy."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.home / "copy.lock")
        while True:
            try:
                lock.acquire(timeout=_SAY_SECONDS)
                break
            except Timeout:
                note(f"waiting for another process that downloads '{self.store.shown}'")
        try:
            yield
        finally:
            lock.release()

    def _is_searched(self) -> bool:
        try:
            with FileLock(self.folder / LOCK).acquire(timeout=0):
                return False
        except Timeout:
            return True

    @property
    def _unsaved(self) -> Path:
        """A file that is there while the copy may have what the store has not."""
        return self.home / "unsaved"

    @property
    def sessions(self) -> list[str]:
        """The searches that wrote to the store from this copy, or were to, after the one before them."""
        file = self.home / "sessions"
        names: list[str] = json.loads(file.read_text()) if file.is_file() else []
        return names

    @sessions.setter
    def sessions(self, names: list[str]) -> None:
        """Write them down, at once or not at all."""
        aside = self.home / "sessions.tmp"
        aside.write_text(json.dumps(names))
        os.replace(aside, self.home / "sessions")


class _Told:
    """Says now and then how much of something is there.

    Args:
        what: is done.
        total: bytes of it.
        note: hears it.
    """

    def __init__(self, what: str, total: int, note: Callable[[str], None]) -> None:
        self.what, self.total, self.note = what, total, note
        self.done, self.next_time, self.lock = 0, time.monotonic() + _SAY_SECONDS, threading.Lock()

    def add(self, count: int) -> None:
        """Some more bytes are there."""
        with self.lock:
            self.done += count
            if time.monotonic() > self.next_time:
                self.next_time = time.monotonic() + _SAY_SECONDS
                self.note(f"{self.what}: {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB")


def cache_folder() -> Path:
    """The folder for copies of runs: this user's cache, or one in TMPDIR where that cannot be written.

    Raises:
        SettingsError: neither can.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    places = []
    with contextlib.suppress(RuntimeError):  # a user without a home
        places.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autocompress")
    places.append(Path(tempfile.gettempdir()) / f"autocompress-{user}")
    for place in places:
        if _usable(place):
            return place
    raise SettingsError(
        "XDG_CACHE_HOME must name a folder that can be written, for a copy of RUN, but neither "
        f"'{places[0]}' nor '{places[-1]}' can be."
    )


def _usable(folder: Path) -> bool:
    """Whether a folder can be made and written, and is not another user's."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        return False


def _copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database as it is in one moment, into another in one transaction."""
    with (
        contextlib.closing(sqlite3.connect(source, timeout=_LOCKED_SECONDS)) as read,
        contextlib.closing(sqlite3.connect(target, timeout=_LOCKED_SECONDS)) as written,
    ):
        read.backup(written)


def _id(described: bytes) -> object:
    try:
        said = json.loads(described)
    except ValueError:
        return None
    return said.get("id") if isinstance(said, dict) else None


def _last_file(unit: str) -> str:
    return f"{unit}/{_COMPLETE if unit == TAKEN_OVER else MANIFEST}"


def _is_plain(name: str) -> bool:
    """Whether a name leads to a file inside, whatever somebody wrote to the store."""
    return not any(part.startswith(".") or "\\" in part for part in name.split("/"))


def _written(files: Mapping[str, RemoteFile]) -> dict[str, int]:
    """When each folder of a store that is there as a whole was written."""
    return {u: _ONCE if u == TAKEN_OVER else files[_last_file(u)].written for u in _whole(files)}


def _whole(files: Iterable[str]) -> dict[str, list[str]]:
    """The folders of a store that are there as a whole, and the files of each that are fetched."""
    units: dict[str, list[str]] = {}
    for name in files:
        match = _UNIT.fullmatch(name)
        if match is not None and _is_plain(name):
            units.setdefault(match[1], []).append(name)
    ended = {unit: sorted(names) for unit, names in units.items() if _last_file(unit) in names}
    last = f"{TAKEN_OVER}/{_COMPLETE}"
    return {unit: [name for name in names if name != last] for unit, names in ended.items()}
