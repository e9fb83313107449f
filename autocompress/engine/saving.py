"""Uploads a run that is searched to its store, beside the search."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

from autocompress.engine.mirror import Mirror
from autocompress.errors import StorageError, one_line
from autocompress.remote.lock import LostLockError, RemoteLock
from autocompress.remote.store import RemoteError

# For how long a store may fail before that ends a search, and the longest wait between two tries.
PATIENCE_SECONDS, _MOST_WAIT = 180.0, 20.0
_LOOK_SECONDS = 5.0


class Saver:
    """Brings the store of a run to what its copy here has, in a thread of its own, whenever that changed.

    Args:
        mirror: the run in the store and here.
        lock: of the run in the store, which is held.
        note: hears that the store fails, and of a last upload that takes long.

    Attributes:
        error: why no more is uploaded, which is to end the search; None while all is well.
    """

    def __init__(self, mirror: Mirror, lock: RemoteLock, note: Callable[[str], None]) -> None:
        self.mirror, self.lock, self.note = mirror, lock, note
        self.error: Exception | None = None
        self._wanted, self._wake = threading.Event(), threading.Event()
        self._ending, self._ended = threading.Event(), threading.Event()
        # They must not keep a process alive that ends at once.
        self._thread = threading.Thread(target=self._keep, args=[self._upload], name="saver", daemon=True)
        self._beats = threading.Thread(target=self._keep, args=[self._beat], name="lock", daemon=True)

    def start(self) -> None:
        """Keep the lock, and upload what changes from now on."""
        self._thread.start()
        self._beats.start()

    def changed(self) -> None:
        """Have what changed uploaded, soon."""
        self._wanted.set()
        self._wake.set()

    def stop(self, save: bool = True) -> None:
        """Wait until all is uploaded.

        Args:
            save: whether to upload what is not yet.
        """
        if save:
            self._wanted.set()
        self._ending.set()
        self._wake.set()
        while self._thread.is_alive():
            self._thread.join(_LOOK_SECONDS)
            if self._thread.is_alive():
                self.note(f"uploading to '{self.mirror.store.shown}'")
        self._ended.set()
        self._beats.join()

    def _upload(self) -> None:
        ending = False
        while not ending:
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            ending = self._ending.is_set()
            self._check()
            if self._wanted.is_set():
                self._wanted.clear()
                self._patiently(self._push)

    def _beat(self) -> None:
        """Keep the lock, also while a large file is uploaded."""
        while not self._ended.wait(1.0):
            self._patiently(self.lock.beat)

    def _keep(self, doing: Callable[[], None]) -> None:
        """Do something until the search has ended, or say why it is to end."""
        try:
            doing()
        except LostLockError as error:
            self.error = self.error or StorageError(
                f"{one_line(error)}, and this search has ended (what it had not uploaded lies in "
                f"'{self.mirror.folder}'; the same command goes on with what the other wrote)"
            )
        except RemoteError as error:
            self.error = self.error or StorageError(
                f"{one_line(error)} (everything that finished lies in '{self.mirror.folder}'; the same "
                "command on this machine goes on, and uploads it)"
            )
        except Exception as error:
            # Of the disk, or our own fault: raised where the search ends, with where it was.
            self.error = self.error or error

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _push(self) -> None:
        # Before others may see what was written without it.
        self.lock.check()
        self.mirror.push(self._check)

    def _patiently(self, action: Callable[[], None]) -> None:
        """Do something, again and again while the store fails; raises what it raised last."""
        since, wait = None, 1.0
        while True:
            try:
                return action()
            except LostLockError:
                raise
            except (RemoteError, sqlite3.OperationalError) as error:
                since = since or time.monotonic()
                if time.monotonic() - since > PATIENCE_SECONDS:
                    raise
                if wait == 1.0:
                    self.note(f"{one_line(error)}; trying again for {PATIENCE_SECONDS:.0f} s")
            time.sleep(wait)
            wait = min(2 * wait, _MOST_WAIT)


@contextlib.contextmanager
def saving(mirror: Mirror | None, note: Callable[[str], None]) -> Iterator[Saver | None]:
    """Hold the run in its store, and bring there what is written here, until all of it is there.

    Args:
        mirror: the run, whose lock on this machine is held; None where it is in no store.
        note: hears what there is to say.

    Raises:
        SettingsError: another search holds the run.
        StorageError: the store failed, or another search took the run over.
    """
    if mirror is None:
        yield None
        return
    lock = RemoteLock(mirror.store)
    # What searched on this copy has ended, as its lock on this machine is held here.
    lock.take(ended=mirror.sessions)
    saver = Saver(mirror, lock, note)
    saver.start()
    begun = False
    try:
        mirror.begin(lock.owner, note)
        begun = True
        yield saver
    except BaseException as error:
        if saver.error is not None and error is not saver.error:
            note(one_line(saver.error))
        raise
    finally:
        saver.stop(save=begun)
        if saver.error is None:
            if begun:
                mirror.saved()
            try:
                lock.release()
            except RemoteError as error:
                note(f"the lock of the run could not be released: {one_line(error)}")
    if saver.error is not None:
        raise saver.error
