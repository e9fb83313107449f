"""One view of the weights under one constraint w = Δ(Θ), and where that stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autocompress.graph.weights import Weight
from autocompress.methods.lc.entropy import entropy
from autocompress.methods.lc.scheme import Scheme, View
from autocompress.methods.lc.straight_through import Hidden
from autocompress.weights.encodings import Encoding, Factored, Pruned, Quantized, Rounded, Summed
from autocompress.weights.packing import codes_per_byte

# What a deflated program has more where a weight is decoded: 165 bytes for codes, 85 for halves.
DECODING_BYTES = 160


@dataclass
class Compression:
    """Layers, the scheme of their weights, and where their constraint stands.

    Args:
        layers: whose weights are one vector.
        scheme: what they become.
        view: what the scheme knows of them.
        encoding: the last Θ.
        multipliers: λ, `(n,)`.
        scale: of this constraint's μ.
        hidden: what is rounded to Δ(Θ), where gradients pass straight through; else None.
        dense: Δ(Θ), `(n,)`.
        targets: Δ(Θ) + λ/μ, which the L step pulls each layer's weight to.
    """

    layers: tuple[Weight, ...]
    scheme: Scheme
    view: View
    encoding: Encoding
    multipliers: Tensor
    scale: float = 1.0
    hidden: Hidden | None = None
    dense: Tensor = field(init=False)
    targets: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.dense = self.encoding.dense()
        self.targets = self.split(self.dense)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector of all weights as one tensor for each layer."""
        parts = torch.split(vector, [layer.params for layer in self.layers])
        return {layer.name: part.reshape(layer.shape) for layer, part in zip(self.layers, parts, strict=True)}

    def encodings(self) -> dict[str, Encoding]:
        """The encoding of each layer's weight."""
        by_layer, start = {}, 0
        for layer in self.layers:
            by_layer[layer.name] = self.encoding.part(start, start + layer.params)
            start += layer.params
        return by_layer

    def solve(self, x: Tensor, mu: float, augmented: bool) -> None:
        """A C step, Θ = argmin μ/2·‖x − λ/μ − Δ(Θ)‖², then λ ← λ − μ(x − Δ(Θ)) where there are multipliers.

        Args:
            x: the weights, `(n,)`.
            mu: of this constraint.
            augmented: whether there are multipliers.
        """
        self.encoding = self.scheme.solve(x - self.multipliers / mu, mu, self.view, self.encoding)
        self.dense = self.encoding.dense()
        if augmented:
            self.multipliers = self.multipliers - mu * (x - self.dense)

    def aim(self, mu: float) -> None:
        """New targets of the L step, by the μ that it will have."""
        self.targets = self.split(self.dense + self.multipliers / mu)


def stored_bytes(encoding: Encoding) -> int:
    """What an encoding's tensors hold before a file's compression, from counts alone and in single precision.

    As many codes share a byte as fit, or take their entropy where one level stays zero; a sparse value takes
    four bytes and one for the zeros before it, and so does a zero on the way where there are more than 255.
    """
    if isinstance(encoding, Summed):
        return sum(stored_bytes(part) for part in encoding.parts)
    if isinstance(encoding, Factored):
        return 4 * (encoding.left.numel() + encoding.right.numel())
    if isinstance(encoding, Rounded):
        return 2 * len(encoding.values)
    if isinstance(encoding, Pruned):
        positions = torch.nonzero(encoding.values)[:, 0]
        zeros = torch.diff(positions, prepend=positions.new_full((1,), -1)) - 1
        return 5 * (len(positions) + int((zeros // 256).sum()))
    assert isinstance(encoding, Quantized)
    levels = len(encoding.levels)
    if encoding.tied == "nonzero":
        return math.ceil(entropy(encoding.codes, levels) * len(encoding.codes) / 8) + 4 * levels
    return -(-len(encoding.codes) // codes_per_byte(levels)) + 4 * levels
