"""An object that says who writes to a folder of a store; stores themselves have no locks."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Container
from pathlib import Path
from typing import Any

from autocompress.errors import SettingsError
from autocompress.remote.store import RemoteError, RemoteStore

# How often it is written again, and after how long without that it counts no more: five times were missed.
BEAT_SECONDS, STALE_SECONDS = 30.0, 150.0
NAME = "lock.json"


class RemoteLock:
    """A lock on a folder of a store, which holds as long as it is written again and again.

    Of two that take it in the same moment one is refused, or told at its next `beat`: nothing keeps it from
    writing until then, as few stores can write where nothing was and nowhere else.

    Args:
        store: the folder.
    """

    def __init__(self, store: RemoteStore) -> None:
        self.store, self.owner = store, uuid.uuid4().hex
        self.next_beat = 0.0

    def take(self, ended: Container[str] = ()) -> None:
        """Take the lock.

        Args:
            ended: owners that are known to have ended, which could not give it back.

        Raises:
            SettingsError: another has it, and is there.
            RemoteError: the store fails.
        """
        other = self._read()
        if other is not None and other.get("owner") not in ended and not _ended_here(other):
            age = self._age()
            if age is not None and age < STALE_SECONDS:
                raise SettingsError(self._taken(other, age))
        self._write()
        other = self._read()
        if other is None or other.get("owner") != self.owner:
            raise SettingsError(self._taken(other or {}, 0.0))

    def beat(self) -> None:
        """Write the lock again, where it is time for it.

        Raises:
            RemoteError: the store fails, or another has taken the lock.
        """
        if time.monotonic() > self.next_beat:
            self.check()
            self._write()

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises:
            LostLockError: another has taken it.
            RemoteError: the store fails.
        """
        other = self._read()
        if other is not None and other.get("owner") != self.owner:
            raise LostLockError(f"{_who(other)} has taken over '{self.store.shown}'")

    def release(self) -> None:
        """Give the lock back.

        Raises:
            RemoteError: the store fails.
        """
        other = self._read()
        if other is not None and other.get("owner") == self.owner:
            self.store.remove(NAME)

    def _write(self) -> None:
        said = {
            "owner": self.owner,
            "host": socket.gethostname(),
            "machine": _machine(),
            "process": os.getpid(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self.store.write(NAME, json.dumps(said).encode())
        self.next_beat = time.monotonic() + BEAT_SECONDS

    def _read(self) -> dict[str, Any] | None:
        content = self.store.read(NAME)
        if content is None:
            return None
        try:
            said = json.loads(content)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def _age(self) -> float | None:
        """Seconds since the lock was written, by the store's clock; None where it is gone."""
        file = self.store.file(NAME)
        return None if file is None else max(0.0, self.store.now() - file.written)

    def _taken(self, other: dict[str, Any], age: float) -> str:
        return (
            f"RUN must not be searched by two processes but '{self.store.shown}' is in use by {_who(other)}, "
            f"which said so {age:.0f} s ago (wait until it ends; of one that was killed on another machine, "
            f"until it has been silent for {STALE_SECONDS:.0f} s)."
        )


class LostLockError(RemoteError):
    """Another process has taken a lock that was held here."""


def _who(other: dict[str, Any]) -> str:
    return f"process {other.get('process', '?')} on {other.get('host', 'an unknown machine')}"


def _ended_here(other: dict[str, Any]) -> bool:
    """Whether who has a lock was a process of this machine that is there no more."""
    process = other.get("process")
    if other.get("machine") != _machine() or not isinstance(process, int) or not hasattr(os, "getuid"):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _machine() -> str:
    """What tells this boot of this machine, and this container's view of its processes, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"
