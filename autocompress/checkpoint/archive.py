"""The `.pt2` archive as it is deployed: deflated, and all tensors of a kind in one record.

PyTorch writes an archive that is not compressed, with a record for each tensor, which costs some 130 bytes
of names and headers. It reads deflated archives as well, and records that several tensors are views of, since
it keeps tied tensors so. Codes, gaps and the graph are then coded by the archive near their entropy.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn
from torch.export.pt2_archive.constants import (
    CONSTANTS_CONFIG_FILENAME_FORMAT,
    SAMPLE_INPUTS_FILENAME_FORMAT,
    TENSOR_CONSTANT_FILENAME_PREFIX,
    WEIGHTS_CONFIG_FILENAME_FORMAT,
    WEIGHTS_DIR,
)

from autocompress.errors import CheckpointError, one_line
from autocompress.weights.encoded import codes_of
from autocompress.weights.packing import deflated

_ROOT = "model"
_SAMPLE = SAMPLE_INPUTS_FILENAME_FORMAT.format("model")
_CONFIG = WEIGHTS_CONFIG_FILENAME_FORMAT.format("model")
_CONSTANTS = CONSTANTS_CONFIG_FILENAME_FORMAT.format("model")
# What damaged archives, and JSON that is not as it should be, raise.
_DAMAGED: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, TypeError, AttributeError)
_DAMAGED += (EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
# A digest for its own cache, which nothing asks for.
_SERIALIZATION_ID = ".data/serialization_id"
_TENSORS = (f"{_ROOT}/{WEIGHTS_DIR}", f"{_ROOT}/data/constants/")
_Kind = tuple[torch.dtype, torch.device, bool]
# Where tensors begin in memory, so that vector instructions and oneDNN take them as they are.
_ALIGNMENT = 64


def deflate(stored: IO[bytes], path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write PyTorch's archive of a program deflated, its tensors put together.

    Under one name whatever the file is called, and with no date: equal models make equal files.

    Args:
        stored: what `torch.export.save` wrote.
        path: of the file to write.
        tensors: of the program's state, by name.
    """
    with zipfile.ZipFile(stored) as archive, zipfile.ZipFile(path, "w") as smaller:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        records.pop(_SERIALIZATION_ID, None)
        records[_SAMPLE] = _without_extras(records[_SAMPLE])
        for name, parts in _joined(records, tensors).items():
            record = zipfile.ZipInfo(f"{_ROOT}/{name}")
            record.compress_type = zipfile.ZIP_DEFLATED
            with smaller.open(record, "w") as file:
                # `zipfile` has no other way to be given a stream that is deflated already.
                file._compressor = _Deflated(parts)  # type: ignore[attr-defined]
                file.write(b"".join(parts))


class _Deflated:
    """What `zipfile` takes for a compressor, which knows already what it is to compress."""

    def __init__(self, parts: Sequence[bytes | bytearray]) -> None:
        self.parts = parts

    def compress(self, content: bytes) -> bytes:
        return b""

    def flush(self) -> bytes:
        return deflated(self.parts)


def _without_extras(example: bytes) -> bytes:
    """Example inputs, which are an archive of their own, without what only PyTorch's writer needs to know:
    how records are aligned, and a digest for a cache. With no padding and no date."""
    kept = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(example)) as archive, zipfile.ZipFile(kept, "w") as smaller:
        for name in archive.namelist():
            if not name.partition("/")[2].startswith("."):
                smaller.writestr(zipfile.ZipInfo(name), archive.read(name))
    return kept.getvalue()


def _joined(records: Mapping[str, bytes], tensors: Mapping[str, Tensor]) -> dict[str, list[bytes]]:
    """The records of an archive, with one for all tensors of the same type that need gradients or do not; in
    parts, which are the tensors."""
    config = json.loads(records[_CONFIG])
    joined: dict[_Kind, list[bytes]] = {}
    begins: dict[str, tuple[_Kind, int]] = {}  # by the record that a tensor, and what is tied to it, had
    for name, payload in config["config"].items():
        record = payload["path_name"]
        content = records[f"{WEIGHTS_DIR}{record}"]
        if payload["use_pickle"] or not content:
            continue  # PyTorch makes tensors without elements from their shape
        if record not in begins:
            kind = _kind(tensors[name])
            begins[record] = kind, _append(joined.setdefault(kind, []), content)
        kind, begin = begins[record]
        payload["path_name"] = f"weights_{list(joined).index(kind)}"
        payload["tensor_meta"]["storage_offset"]["as_int"] += begin // tensors[name].element_size()
    kept = {
        name: [content] for name, content in records.items() if name.removeprefix(WEIGHTS_DIR) not in begins
    }
    kept[_CONFIG] = [json.dumps(config, separators=(",", ":")).encode()]
    return kept | {f"{WEIGHTS_DIR}weights_{i}": parts for i, parts in enumerate(joined.values())}


def _kind(tensor: Tensor) -> _Kind:
    """What PyTorch takes from the first tensor of a record for all of it."""
    return tensor.dtype, tensor.device, tensor.requires_grad


def _append(parts: list[bytes], content: bytes) -> int:
    """Add a tensor to a record, aligned; where it begins, in bytes."""
    length = sum(map(len, parts))
    padding = bytes(-length % _ALIGNMENT)
    if parts:
        parts[-1] += padding
    parts.append(content)
    return length + len(padding)


def refuse_pickles(path: Path) -> None:
    """Refuse a `.pt2` file that holds pickled objects, whose code PyTorch would run to load them.

    This package writes none: tensors are bytes, and example inputs are tensors in plain containers.

    Raises:
        CheckpointError: it does, or is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = {name.partition("/")[2]: name for name in archive.namelist()}
            weights = json.loads(archive.read(records[_CONFIG]))["config"].values()
            constants = json.loads(archive.read(records[_CONSTANTS]))["config"].values()
            example = archive.read(records[_SAMPLE])
        pickled = [w["path_name"] for w in weights if w["use_pickle"]]
        pickled += [
            c["path_name"]
            for c in constants
            if c["use_pickle"] or not c["path_name"].startswith(TENSOR_CONSTANT_FILENAME_PREFIX)
        ]
    except _DAMAGED as error:
        raise CheckpointError(
            f"program '{path}' cannot be loaded: {type(error).__name__}: {one_line(error)}"
        ) from error
    try:
        torch.load(io.BytesIO(example), weights_only=True)
    except (
        Exception
    ):  # of what PyTorch does not know it may be any error; it would load it then with its code
        pickled.append(_SAMPLE)
    if pickled:
        raise CheckpointError(
            f"program '{path}' must hold no pickled objects, whose code would run, but {pickled[0]!r} is one."
        )


def tensor_bytes(path: Path) -> int:
    """Bytes that the tensors of a `.pt2` file take in it, as they are stored there."""
    with zipfile.ZipFile(path) as archive:
        return sum(
            entry.compress_size
            for entry in archive.infolist()
            if entry.filename.startswith(_TENSORS) and not entry.filename.endswith(".json")
        )


def least_tensor_bytes(model: nn.Module) -> int:
    """The least that the tensors of a model will take in its `.pt2` file, as `tensor_bytes` counts them.

    What batch norms hold may become one bias each, or nothing, and where weights are codes vectors may be
    halves; what a model's code has of other tensors comes in addition.
    """
    joined: dict[_Kind, list[bytes]] = {}
    coded = bool(codes_of(model))
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                if coded and tensor.dim() == 1 and tensor.dtype == torch.float32:
                    tensor = tensor.half()
                content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                _append(joined.setdefault(_kind(tensor), []), content)
    return sum(len(deflated(parts)) for parts in joined.values())
