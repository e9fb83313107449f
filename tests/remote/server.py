"""A real S3-compatible server in this process, with one bucket."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer
from pyarrow import fs

KEY, SECRET = "AKIDEXAMPLEKEY", "s3cr/et+of%the=key"
BUCKET = "bucket"


class Server:
    """What the server holds, and addresses of runs in it."""

    def __init__(self, server: ThreadedMotoServer) -> None:
        self.server = server
        host, self.port = server.get_host_and_port()
        self.endpoint = f"{host}:{self.port}"
        self.filesystem = fs.S3FileSystem(
            access_key=KEY,
            secret_key=SECRET,
            scheme="http",
            endpoint_override=self.endpoint,
            region="us-east-1",
            allow_bucket_creation=True,
        )
        self.filesystem.create_dir(BUCKET)

    def address(self, name: str, bucket: str = BUCKET) -> str:
        """With key and secret, as a careless user gives it."""
        secret = "s3cr%2Fet%2Bof%25the%3Dkey"
        return f"s3://{KEY}:{secret}@{bucket}/{name}?{self.options}"

    @property
    def options(self) -> str:
        return f"endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def names(self, name: str) -> set[str]:
        """Of all files under a folder."""
        selector = fs.FileSelector(f"{BUCKET}/{name}", recursive=True, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return {
            info.path.removeprefix(f"{BUCKET}/{name}/") for info in infos if info.type is fs.FileType.File
        }

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{BUCKET}/{name}") as stream:
            content: bytes = stream.read()
            return content


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    """A server on a port; of one that was there before in this process, it has what that had."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        yield Server(server)
    finally:
        server.stop()
