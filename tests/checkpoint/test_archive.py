"""The archive of a program: few records, the same tensors, and sizes that are known before."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.checkpoint import export_program
from autocompress.checkpoint.archive import least_tensor_bytes, refuse_pickles, tensor_bytes
from autocompress.checkpoint.program import load_module
from autocompress.errors import CheckpointError
from autocompress.weights import packing


def deep(layers: int = 24, width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(layers))
    )


def test_many_small_tensors_take_one_record(tmp_path: Path) -> None:
    model, x = deep(), torch.randn(3, 6)
    export_program(model, x, tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        records = [name for name in archive.namelist() if "/weights/weights_" in name]
    assert len(records) == 1
    with torch.no_grad():
        assert torch.equal(load_module(tmp_path / "model.pt2")(x), model(x))
    stored = sum(4 * parameter.numel() for parameter in model.parameters())
    # PyTorch's own archive, deflated, has 96 records of 130 bytes of names and headers here.
    assert (tmp_path / "model.pt2").stat().st_size < stored + 9000


def test_tensors_of_all_types_and_shapes_come_back(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3).t())  # not contiguous
            self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
            self.empty = nn.Parameter(torch.zeros(0, 3))
            self.register_buffer("scale", torch.tensor(2.5))
            self.register_buffer("codes", torch.arange(3, dtype=torch.uint8))
            self.register_buffer("shifts", torch.arange(3))
            self.register_buffer("halves", torch.randn(3, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            y = x @ self.weight + self.frozen.sum() * self.scale
            y = y + torch.cat([self.empty, self.codes[None].float()]).sum()
            return y + self.shifts.sum() + self.halves.float().mean()

    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(2, 3)
    export_program(model, x, tmp_path / "model.pt2")
    loaded = load_module(tmp_path / "model.pt2")
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert state[name].stride() == tensor.stride()
        assert torch.equal(state[name], tensor)


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60))
    tied[1].weight = tied[0].weight
    export_program(tied, torch.zeros(2, 60), tmp_path / "tied.pt2")
    assert tensor_bytes(tmp_path / "tied.pt2") < 4 * (60 * 60 + 2 * 60) + 200


def test_tensors_take_in_the_file_what_was_foretold_and_no_less(
    residual: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    plain = deep()
    plain[0][0].weight.data[:, ::2] = 0  # something to deflate
    export_program(plain, torch.zeros(2, 6), tmp_path / "plain.pt2")
    assert least_tensor_bytes(plain) == tensor_bytes(tmp_path / "plain.pt2")
    export_program(residual, images[:2], tmp_path / "normed.pt2")
    assert 0.9 < least_tensor_bytes(residual) / tensor_bytes(tmp_path / "normed.pt2") <= 1


class Calls:
    """What runs code of a file's choice where it is loaded as a pickle."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("place", ["weight", "constant", "example"])
def test_archives_that_hold_pickles_are_refused_and_none_is_loaded(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_program(nn.Linear(4, 2).eval(), torch.randn(2, 4), tmp_path / "plain.pt2")
    refuse_pickles(tmp_path / "plain.pt2")
    torch.save(Calls(), tmp_path / "pickle")
    evil = (tmp_path / "pickle").read_bytes()
    with (
        zipfile.ZipFile(tmp_path / "plain.pt2") as plain,
        zipfile.ZipFile(tmp_path / "evil.pt2", "w") as changed,
    ):
        for name in plain.namelist():
            content = plain.read(name)
            if place == "example" and "sample_inputs" in name:
                content = evil
            if place == "weight" and "weights_config" in name:
                content = content.replace(b'"use_pickle":false', b'"use_pickle":true')
            if place == "constant" and "constants_config" in name:
                content = json.dumps(
                    {"config": {"c": {"path_name": "custom_obj_0", "is_param": False, "use_pickle": False}}}
                ).encode()
            changed.writestr(name, content)
    with pytest.raises(CheckpointError, match="must hold no pickled objects, whose code would run"):
        load_module(tmp_path / "evil.pt2")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("most", [1 << 22, 10])
def test_a_stream_of_parts_is_inflated_as_one(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MOST_TRIED", most)
    rng = np.random.default_rng(0)
    parts = [
        rng.geometric(0.03, 4000).clip(0, 255).astype(np.uint8).tobytes(),
        rng.integers(0, 5, 3000).astype(np.uint8).tobytes(),
        b"",
        b"graph " * 400,
    ]
    assert zlib.decompress(packing.deflated(parts), -zlib.MAX_WBITS) == b"".join(parts)
    assert zlib.decompress(packing.deflated([]), -zlib.MAX_WBITS) == b""


def test_parts_of_unlike_statistics_take_what_each_takes_alone() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.geometric(0.03, 4000).clip(0, 255).astype(np.uint8).tobytes()
    codes = rng.choice(16, 3000, p=np.arange(16) / 120).astype(np.uint8).tobytes()
    usual = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = len(usual.compress(gaps + codes) + usual.flush())
    assert len(packing.deflated([gaps, codes])) < 0.95 * size
    counts = np.bincount(np.frombuffer(gaps, np.uint8))
    shares = counts[counts > 0] / len(gaps)
    entropy = -(shares * np.log2(shares)).sum() * len(gaps) / 8
    assert len(packing.deflated([gaps])) < 1.06 * entropy


def test_few_bytes_share_a_table() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 5, 40).astype(np.uint8).tobytes() for _ in range(20)]
    together = packing.deflated(parts)
    assert len(together) < sum(packing.deflated_size(part) for part in parts) * 0.6
