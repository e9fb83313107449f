"""What Ray needs of a machine to start there: a folder, a token, and each worker's share of the memory."""

from __future__ import annotations

import os
import secrets
import tempfile
from functools import cache
from pathlib import Path

from autocompress.errors import SettingsError

# The system's limit to the path of a socket, without its end; and what Ray adds to its folder for one:
# "/session_2026-11-27_07-45-53_123456_1234567/sockets/plasma_store".
_MOST_OF_PATH, _ADDED = 107, 66
# No worker gets less memory, and all of them together so much of what is free.
_LEAST_MEMORY, _SHARE = 1 << 30, 0.9


def ray_folder() -> str | None:
    """The folder for Ray's sockets and logs on this machine; None where Ray's own choice will do.

    That is `ray` in TMPDIR, which may be too long for a socket's path, or another user's.

    Raises:
        SettingsError: no folder will do.
    """
    # Python leaves a TMPDIR that cannot be written for another folder, and Ray does not.
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    own_choice = Path(chosen) / "ray"
    if _usable(own_choice):
        return None
    user = os.getuid() if hasattr(os, "getuid") else ""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):
        folder = Path(parent) / f"ray-{user}"
        if _usable(folder):
            return str(folder)
    raise SettingsError(
        f"RAY_TMPDIR must name a writable folder with a path of at most {_MOST_OF_PATH - _ADDED} characters, "
        f"for '{own_choice}' is none, nor is one in /tmp, /var/tmp or /dev/shm."
    )


def _usable(folder: Path) -> bool:
    """Whether Ray can make its folders there: the place is there or can be made, and is short enough."""
    if len(os.fsencode(folder)) + _ADDED > _MOST_OF_PATH:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            # Those that others made keep what they belong to, and whom, even where anyone may write.
            return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        return False


def has_token() -> bool:
    """Whether there is a token by which the processes of a cluster know each other."""
    try:
        return "RAY_AUTH_TOKEN" in os.environ or (_token_folder() / "auth_token").is_file()
    except (OSError, RuntimeError):
        return False


def _token_folder() -> Path:
    """Where Ray keeps its token.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path.home() / ".ray"


def give_token() -> None:
    """Have the processes of a Ray that is started here know each other where HOME takes no token.

    Of a token that is there Ray itself turns the mode on: a mode that is named now would be too late for the
    part of Ray that reads it when it is imported.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    try:
        folder = _token_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return
    except (OSError, RuntimeError):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def memory_share(workers: int) -> int | None:
    """Bytes that each of some workers on this machine may take; None where the system does not say.

    Args:
        workers: at a time.
    """
    free = [bytes for bytes in (_free_of_machine(), _free_of_group()) if bytes is not None]
    return max(_LEAST_MEMORY, int(_SHARE * min(free) / workers)) if free else None


def _free_of_machine() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable:")


def _free_of_group() -> int | None:
    """What a container's limit leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        most, taken = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return None
    return None if most == "max" else max(0, int(most) - int(taken))


def _field(file: Path, name: str) -> int | None:
    """Bytes, of a file of lines as "VmData:   1024 kB"."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


@cache
def limit_memory(share: int) -> None:
    """Let this process, and each that it starts, take so many bytes beyond what it has, on Linux.

    A trial that needs more then fails by itself, where the system would end whichever process it likes.

    Once in a process: the second trial of a worker has what the first had.
    """
    taken = _field(Path("/proc/self/status"), "VmData:")
    if taken is None:
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = taken + share
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if most < 0 else min(wanted, most), most))
