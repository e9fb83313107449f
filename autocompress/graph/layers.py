"""A model's layers as people compare them: width, rank, bits and costs of each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.weights.decoders import WeightCode
from autocompress.weights.encoded import codes_of
from autocompress.weights.factored import FactorPair, layer_kind, outputs_first

# Attributes of layers, with several weights or one that is stacked, that say how many features they make.
_WIDTHS = ("hidden_size", "embed_dim")


@dataclass(frozen=True)
class LayerSummary:
    """What a layer that holds weights is like.

    Args:
        name: of its module.
        kind: class of the module; of a factorised layer that of the layer which its two stand for.
        channels: features that it makes.
        rank: of its largest weight, folded to outputs × the rest: that of its factors, else the full one.
        bits: that one of its numbers takes on average.
        params: its numbers.
        macs: of one input.
        bytes: of its tensors, before the archive deflates them.
    """

    name: str
    kind: str
    channels: int
    rank: int
    bits: float
    params: int
    macs: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """Turn the summary into JSON-able data."""
        return asdict(self)


@dataclass(frozen=True)
class _Stored:
    """A parameter as it is, or what it is decoded from."""

    shape: tuple[int, ...]
    numbers: int
    bytes: int
    code: WeightCode | None = None


def layer_summaries(model: nn.Module, macs: Mapping[str, int]) -> list[LayerSummary]:
    """Each layer with a parameter of more than one dimension, in the order of the model's modules.

    Shared parameters count for the layer that comes first.

    Args:
        model: of any class, or a graph.
        macs: multiply-accumulates of one input by module, from `layer_macs`.
    """
    modules = dict(model.named_modules())
    pairs = [name for name, module in modules.items() if isinstance(module, FactorPair)]
    stored: dict[str, list[_Stored]] = defaultdict(list)
    codes = codes_of(model)
    for name, code in codes.items():
        size = sum(_bytes(tensor) for tensor in code.state_dict().values())
        stored[_owner(name, pairs)].append(_Stored(code.shape, code.numbers, size, code))
    for name, parameter in model.named_parameters():
        if not any(name.startswith(f"{code}.") for code in codes):
            entry = _Stored(tuple(parameter.shape), parameter.numel(), _bytes(parameter))
            stored[_owner(name, pairs)].append(entry)
    return [
        _summary(name, module, stored[name], macs.get(name, 0))
        for name, module in modules.items()
        if any(len(entry.shape) > 1 for entry in stored.get(name, ()))
    ]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _owner(name: str, pairs: list[str]) -> str:
    """Name of the layer that a parameter or a code is of, by its own name."""
    owner = name.rpartition(".")[0]
    return next((pair for pair in pairs if owner == pair or owner.startswith(f"{pair}.")), owner)


def _summary(name: str, module: nn.Module, entries: list[_Stored], macs: int) -> LayerSummary:
    largest = max((entry for entry in entries if len(entry.shape) > 1), key=lambda e: math.prod(e.shape))
    kind, folded = _folded(module, largest)
    width = next((int(getattr(module, width)) for width in _WIDTHS if hasattr(module, width)), folded[0])
    stood_for = sum(math.prod(entry.shape) for entry in entries)
    size = sum(entry.bytes for entry in entries)
    return LayerSummary(
        name=name,
        kind=kind.__name__,
        channels=width,
        rank=_rank(module, largest, folded),
        bits=round(8 * size / max(1, stood_for), 3),
        params=sum(entry.numbers for entry in entries),
        macs=macs,
        bytes=size,
    )


def _folded(module: nn.Module, largest: _Stored) -> tuple[type[nn.Module], tuple[int, ...]]:
    """The class that people know a layer by, and the shape of its weight with what it makes first."""
    if isinstance(module, FactorPair):
        second: Any = module[1]
        # Channels may have been cut since the layer was factorised.
        features = getattr(second, "out_features", 0) or getattr(second, "out_channels", 0)
        return module.kind, (int(features), *module.folding.shape[1:])
    kind = layer_kind(module)
    if kind is None:
        return getattr(module, "dense_class", type(module)), largest.shape
    weight = torch.empty(largest.shape, device="meta")
    return kind, tuple(outputs_first(kind, weight, int(getattr(module, "groups", 1))).shape)


def _rank(module: nn.Module, largest: _Stored, folded: tuple[int, ...]) -> int:
    if isinstance(module, FactorPair):
        second: Any = module[1]
        # The second layer reads what the first one makes: as many features as all slices have ranks.
        return int(getattr(second, "in_features", 0) or getattr(second, "in_channels", 0))
    sizes = {} if largest.code is None else largest.code.sizes()
    return int(sizes.get("rank", min(folded[0], math.prod(folded[1:]))))
