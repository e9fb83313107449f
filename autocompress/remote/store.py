"""A folder in an object store, or in another file system that `pyarrow.fs` knows."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import ArrowException, fs

from autocompress.errors import SettingsError, StorageError, one_line
from autocompress.remote.address import normal_address, secrets_of_address, shown, without_secrets

# Of a try that reaches nobody, and of one that is not answered, in seconds; and how many tries there are.
_CONNECT_SECONDS, _ANSWER_SECONDS, _TRIES = 5.0, 10.0, 3
# For all tries of Google's client, which otherwise takes a quarter of an hour.
_GOOGLE_SECONDS = 30
# Of those a file appears whole or not at all; in others it is written aside and moved.
_OBJECT_STORES = ("s3", "gcs", "abfs")
_PIECE = 8 << 20


class RemoteError(StorageError):
    """A store did not do what it was asked for, which may be for now alone."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a store: its size in bytes, and its time in whole seconds by the clock of the store."""

    size: int
    written: int


class RemoteStore:
    """Files under an address, by names relative to it, with slashes.

    Args:
        address: as `pyarrow.fs.FileSystem.from_uri` takes it.

    Attributes:
        shown: the address without its secrets.

    Raises:
        SettingsError: pyarrow does not know such an address, or nobody answers there, or there is no such
            bucket, or it may not be seen with these credentials.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = normal_address(address)
        self.shown, self._secrets = shown(self.address), secrets_of_address(self.address)
        try:
            self.filesystem, root = _opened(self.address)
        except (ValueError, NotImplementedError) as error:
            raise SettingsError(
                "RUN must be a folder, or an address that pyarrow.fs can read (s3, gs, abfs, hdfs or file), "
                f"but of '{self.shown}' it says: {self._said(error)}."
            ) from None
        except OSError as error:
            raise self._unanswered(error) from None
        self.root = root.rstrip("/")
        self._check()

    def __reduce__(self) -> Any:
        return RemoteStore, (self.address,)

    def _check(self) -> None:
        if not self.root:
            raise SettingsError(f"RUN must name a place in a store but got '{self.shown}'.")
        if self.filesystem.type_name not in _OBJECT_STORES:
            return
        bucket = self.root.partition("/")[0]
        try:
            there = self.filesystem.get_file_info(bucket).type is not fs.FileType.NotFound
        except (OSError, ArrowException) as error:
            raise self._unanswered(error) from None
        if not there:
            raise SettingsError(
                f"RUN must be in a bucket that is there but '{bucket}' of '{self.shown}' is not (make it "
                "first)."
            )

    def _unanswered(self, error: Exception) -> SettingsError:
        return SettingsError(
            f"RUN must be in a store that answers but '{self.shown}' does not: {self._said(error)} (check "
            "the address, the network and the credentials)."
        )

    def files(self) -> dict[str, RemoteFile]:
        """All files, by name.

        Raises:
            RemoteError: the store fails.
        """
        with self._telling():
            selector = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
            infos = self.filesystem.get_file_info(selector)
        return {
            info.path.removeprefix(self.root).lstrip("/"): _file(info)
            for info in infos
            if info.type is fs.FileType.File
        }

    def file(self, name: str) -> RemoteFile | None:
        """What is known of a file; None where there is none.

        Raises:
            RemoteError: the store fails.
        """
        with self._telling():
            info = self.filesystem.get_file_info(self._path(name))
        return _file(info) if info.type is fs.FileType.File else None

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none.

        Raises:
            RemoteError: the store fails.
        """
        try:
            with self._telling(), self.filesystem.open_input_stream(self._path(name)) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def download(self, name: str, target: Path, each: Callable[[int], None] = lambda count: None) -> None:
        """Copy a file from the store.

        Args:
            name: of the file.
            target: where to; its folder is there.
            each: hears of each piece how many bytes it had.

        Raises:
            FileNotFoundError: there is no such file, any more.
            RemoteError: the store fails.
        """
        with self._telling():
            stream = self.filesystem.open_input_stream(self._path(name))
        with stream, target.open("wb") as file:
            while True:
                with self._telling():
                    piece = stream.read(_PIECE)
                if not piece:
                    return
                file.write(piece)
                each(len(piece))

    def upload(self, source: Path, name: str) -> None:
        """Copy a file to the store; of one that could not be read to its end, a part may be there.

        Args:
            source: the file.
            name: in the store.

        Raises:
            FileNotFoundError: there is no such file here, any more.
            RemoteError: the store fails.
        """
        with source.open("rb") as file, self._writing(name) as stream:
            while piece := file.read(_PIECE):
                with self._telling():
                    stream.write(piece)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which appears whole or not at all.

        Raises:
            RemoteError: the store fails.
        """
        with self._writing(name) as stream, self._telling():
            stream.write(content)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there.

        Raises:
            RemoteError: the store fails.
        """
        with contextlib.suppress(FileNotFoundError), self._telling():
            self.filesystem.delete_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Delete a folder and all in it, if it is there.

        Raises:
            RemoteError: the store fails.
        """
        with contextlib.suppress(FileNotFoundError), self._telling():
            self.filesystem.delete_dir(self._path(name))

    def now(self) -> int:
        """What time it is by the store's clock, in whole seconds, which is that of `RemoteFile.written`.

        Raises:
            RemoteError: the store fails.
        """
        name = f"clock-{uuid.uuid4().hex}"
        self.write(name, b"-")
        try:
            file = self.file(name)
        finally:
            self.remove(name)
        if file is None:
            raise RemoteError(f"'{self.shown}' lost a file that was written there")
        return file.written

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        """A stream whose content is the file's once it is closed."""
        path = self._path(name)
        whole = self.filesystem.type_name in _OBJECT_STORES
        written = path if whole else f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        with self._telling():
            if not whole:
                self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            stream = self.filesystem.open_output_stream(written)
        yield stream
        with self._telling():
            stream.close()
            if not whole:
                self.filesystem.move(written, path)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Say in one line, without secrets, what the store raises inside."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, ArrowException) as error:
            # Not from it: it may say more than is to be read in a traceback.
            raise RemoteError(f"'{self.shown}' failed: {self._said(error)}") from None

    def _said(self, error: BaseException) -> str:
        return without_secrets(one_line(error).replace(self.address, self.shown), self._secrets).rstrip(".")


def _file(info: Any) -> RemoteFile:
    return RemoteFile(info.size, (info.mtime_ns or 0) // 10**9)


def _opened(address: str) -> tuple[Any, str]:
    """The file system that an address names, with time limits, and the path in it."""
    if address.partition(":")[0].lower() in ("gs", "gcs") and "retry_limit_seconds=" not in address:
        mark = "&" if "?" in address else "?"
        address = f"{address}{mark}retry_limit_seconds={_GOOGLE_SECONDS}"
    filesystem, root = fs.FileSystem.from_uri(address)
    return (_with_limits(filesystem, address) if filesystem.type_name == "s3" else filesystem), root


def _with_limits(filesystem: Any, address: str) -> Any:
    """The S3 of an address that pyarrow has read, with time limits, which its options cannot name."""
    parts = urlsplit(address)
    switches = {"true": True, "false": False}
    options: dict[str, Any] = {name: switches.get(value, value) for name, value in parse_qsl(parts.query)}
    try:
        return fs.S3FileSystem(
            access_key=unquote(parts.username) if parts.username else None,
            secret_key=unquote(parts.password) if parts.password else None,
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=_ANSWER_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
            **{**options, "region": filesystem.region or None},
        )
    except TypeError:
        return filesystem  # with an option that a constructor lacks, and pyarrow's own limits
