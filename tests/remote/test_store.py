"""A store: what it does, and in which words it does not."""

from __future__ import annotations

import http.server
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import autocompress as ac
from autocompress.remote.lock import NAME, STALE_SECONDS, LostLockError, RemoteLock
from autocompress.remote.store import RemoteError, RemoteFile, RemoteStore
from tests.remote.server import KEY, Server, serving

SECRETS = (KEY, "s3cr")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> RemoteStore:
    if request.param == "file":
        return RemoteStore(f"file://{tmp_path}/a%20run")
    return RemoteStore(server.address(tmp_path.name))


def test_files_are_written_listed_read_and_deleted(store: RemoteStore, tmp_path: Path) -> None:
    assert store.files() == {}
    assert store.file("a") is None
    assert store.read("a") is None
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    store.write("a", b"old")
    store.upload(source, "a")
    store.upload(source, "folder/b")
    seen: list[int] = []
    assert {name: file.size for name, file in store.files().items()} == {"a": 7, "folder/b": 7}
    store.download("folder/b", target, seen.append)
    assert seen == [7]
    assert store.read("a") == target.read_bytes() == b"content"
    with pytest.raises(FileNotFoundError):
        store.download("folder/none", target)
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "none", "c")
    file = store.file("a")
    assert file is not None
    assert 0 <= store.now() - file.written < 60
    again = pickle.loads(pickle.dumps(store))
    again.remove("a")
    again.remove("none")
    again.remove_folder("folder")
    again.remove_folder("none")
    assert store.files() == {}


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers everything with one status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_POST = answer

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_no_run_can_be_is_refused_in_a_line_without_secrets(server: Server) -> None:
    unreachable = f"s3://{KEY}:s3cret@bucket/run?endpoint_override=127.0.0.1:9&scheme=http&region=x"
    with answering(403) as forbidden:
        faults = {
            f"foo://{KEY}:s3cret@bucket/run": "Unrecognized filesystem type",
            f"s3://{KEY}:s3/cret@bucket/run": "Cannot parse URI",
            f"s3://{KEY}:s3cret@bucket/run?nonsense=1": "Unexpected query parameter",
            "s3://": "name a place in a store",
            server.address("run", "nobody"): r"'nobody' of .* is not \(make it first\)",
            unreachable: r"connect to server.*\(check the address, the network and the credentials\)",
            unreachable.replace("127.0.0.1:9", forbidden): "ACCESS_DENIED",
        }
        for address, said in faults.items():
            with pytest.raises(ac.UsageError, match=rf"^RUN must .*{said}") as raised:
                ac.load_run(address)
            assert "\n" not in str(raised.value)
            assert not any(secret in str(raised.value) for secret in SECRETS), raised.value


def test_a_server_that_does_not_answer_is_waited_for_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.remote.store._ANSWER_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ac.UsageError, match=r"must be in a store that answers .*Timeout"):
            RemoteStore(f"s3://bucket/run?endpoint_override=127.0.0.1:{port}&scheme=http&region=x")


def test_a_store_that_ends_to_be_there_is_told_without_secrets() -> None:
    with serving() as server:
        store = RemoteStore(server.address("run"))
    for fails in (store.files, store.now, lambda: store.read("a"), lambda: store.remove_folder("a")):
        with pytest.raises(RemoteError, match=r"^'s3://\*\*\*@bucket/run\?.*' failed: ") as raised:
            fails()
        assert not any(secret in str(raised.value) for secret in SECRETS)


def test_a_lock_is_held_by_one_and_given_back(store: RemoteStore) -> None:
    first, second = RemoteLock(store), RemoteLock(store)
    first.take()
    with pytest.raises(ac.UsageError, match=r"two processes but .* is in use by process .*said so \d s ago"):
        second.take()
    first.beat()
    second.release()
    first.check()
    first.release()
    second.take()
    with pytest.raises(LostLockError, match="has taken over"):
        first.check()
    second.release()
    assert store.files() == {}


@pytest.mark.parametrize("why", ["silent", "killed"])
def test_a_lock_of_one_that_is_silent_for_long_or_was_killed_here_is_taken_over(
    why: str, store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = RemoteLock(store), RemoteLock(store)
    first.take()
    if why == "silent":
        age = STALE_SECONDS + 1
        monkeypatch.setattr(RemoteStore, "file", lambda self, name: RemoteFile(1, int(time.time() - age)))
        monkeypatch.setattr(RemoteStore, "now", lambda self: int(time.time()))
    else:
        # A process number that no process has.
        stored = store.read(NAME)
        assert stored is not None
        most = int(Path("/proc/sys/kernel/pid_max").read_text())
        store.write(NAME, stored.replace(f'"process": {os.getpid()}'.encode(), f'"process": {most}'.encode()))
    second.take()
    first.next_beat = 0.0
    with pytest.raises(LostLockError):
        first.beat()
