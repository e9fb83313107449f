"""Addresses: what is one, and what of it may be read."""

from __future__ import annotations

from pathlib import Path

import pytest

import autocompress as ac
from autocompress.remote import is_address, normal_address, refuse_address, secrets_of_address, shown
from autocompress.remote.address import place_digest, without_secrets


@pytest.mark.parametrize("path", ["runs/mine", "/data/a:b/run", "C:/runs/mine", "with spaces: /run", "s3"])
def test_other_paths_are_folders(path: str) -> None:
    assert not is_address(path)
    assert not is_address(Path(path))
    refuse_address("out", path)


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("s3://bucket/run/", "s3://bucket/run"),
        (Path("s3://bucket/run"), "s3://bucket/run"),
        (Path("file:///data/run"), "file:///data/run"),
        ("s3://bucket/run/?region=x", "s3://bucket/run?region=x"),
        ("s3://", "s3://"),
    ],
)
def test_an_address_is_read_as_pyarrow_takes_it(path: str | Path, normal: str) -> None:
    assert is_address(path)
    assert normal_address(path) == normal


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ("s3://AKIDKEY:s3cret@bucket/run?region=x", "s3://***@bucket/run?region=x"),
        ("s3://AKIDKEY:s3/cr@et@bucket/run", "s3://***@bucket/run"),
        ("s3://bucket/run?scheme=http&secret_key=s3cret", "s3://bucket/run?scheme=http&secret_key=***"),
        ("abfs://box@me.dfs.core.windows.net/run", "abfs://box@me.dfs.core.windows.net/run"),
        ("abfs://box:s3cret@me.blob.net/run?sig=s3cret", "abfs://box:***@me.blob.net/run?sig=***"),
        ("gs://anonymous@bucket/run", "gs://anonymous@bucket/run"),
    ],
)
def test_no_secret_of_an_address_is_shown(address: str, told: str) -> None:
    assert shown(address) == shown(Path(address)) == told
    assert shown(told) == told
    assert bool(secrets_of_address(address)) == ("***" in told)
    assert "s3" not in without_secrets(address, secrets_of_address(address)).removeprefix("s3://")
    assert not secrets_of_address(told)


def test_a_copy_lies_where_it_did_whatever_the_key_is_and_elsewhere_for_another_store() -> None:
    place = place_digest("s3://bucket/run?endpoint_override=127.0.0.1:1&scheme=http")
    assert place_digest("s3://KEY:secret@bucket/run/?scheme=http&endpoint_override=127.0.0.1:1") == place
    assert place_digest("s3://OTHER:key@bucket/run?endpoint_override=127.0.0.1:1&region=x") == place
    others = ["s3://bucket/run", "gs://bucket/run", "s3://bucket/run2", "abfs://a@bucket/run"]
    others += ["abfs://b@bucket/run", "s3://bucket/run?endpoint_override=127.0.0.1:2"]
    assert len({place, *map(place_digest, others)}) == 1 + len(others)


def test_what_must_be_a_file_here_is_refused_by_its_name_without_its_secrets() -> None:
    said = r"^output must be a path on this machine but got 's3://\*\*\*@bucket/x' \(write it here"
    with pytest.raises(ac.UsageError, match=said):
        refuse_address("output", "s3://KEYKEY:s3cret@bucket/x")
