"""Codes: modules that give a weight, which they decode from what they hold; they train, copy and export."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import CheckpointError, one_line
from autocompress.weights.encodings import Encoding, Factored, Pruned, Quantized, Rounded
from autocompress.weights.folding import Folding
from autocompress.weights.packing import codes_per_byte, deflated_size, digits, pack

# Share of zeros from which on their places may be worth storing, and what the program takes more to do so.
_LEAST_ZEROS, _SCATTERING = 0.5, 100


class WeightCode(nn.Module):
    """What a weight is decoded from; calling it gives the weight, of shape `shape`.

    A subclass with a `kind` of its own is known by it: a plug-in's code is stored and rebuilt like ours.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[WeightCode]]] = {}
    # Whether it is made of weights again, which a further method may compress.
    of_weights: ClassVar[bool] = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            WeightCode.kinds[cls.kind] = cls

    @property
    def spec(self) -> dict[str, Any]:
        """Kind and sizes, JSON-able: with the weight's shape all that `empty` needs."""
        return {"kind": self.kind, **self.sizes()}

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """What `empty` takes beside the shape, JSON-able."""

    @classmethod
    @abstractmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> WeightCode:
        """A code of these sizes whose tensors are yet to be loaded."""

    @staticmethod
    def from_spec(spec: Mapping[str, Any], shape: tuple[int, ...]) -> WeightCode:
        """A code as `spec` describes it, whose tensors are yet to be loaded.

        Raises:
            CheckpointError: its kind is unknown, or a size is missing.
        """
        sizes = {name: value for name, value in spec.items() if name != "kind"}
        kind = spec.get("kind")
        if kind not in WeightCode.kinds:
            raise CheckpointError(
                f"kind of a weight's code must be one of {', '.join(WeightCode.kinds)} but got {kind!r} "
                "(a plug-in that is not installed here?)."
            )
        try:
            return WeightCode.kinds[kind].empty(shape, **sizes)
        except (TypeError, KeyError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
            raise CheckpointError(f"code of kind {kind!r} is not readable: {reason}") from error

    @property
    @abstractmethod
    def numbers(self) -> int:
        """Weights that this counts as: one for each code, each value and each number of a factor."""


class Codes(WeightCode):
    """Packed codes and the levels they stand for.

    Args:
        encoding: codes and levels.
        shape: of the weight.
        per_byte: codes that share a byte; None for as many as is best.
    """

    kind = "codes"
    packed: Tensor
    digits: Tensor | None

    def __init__(self, encoding: Quantized, shape: tuple[int, ...], per_byte: int | None = None) -> None:
        super().__init__(shape)
        levels = encoding.levels.detach().clone()
        self.count, self.k, self.tied = len(encoding.codes), len(levels), encoding.tied
        self.per_byte = per_byte or codes_per_byte(self.k, self.count)
        self.register_buffer("packed", pack(encoding.codes, self.k, self.per_byte).to(levels.device))
        self.register_buffer("digits", self._digits(), persistent=False)
        self.scale: nn.Parameter | None = None
        if encoding.tied in ("free", "nonzero"):
            self.levels: Tensor = nn.Parameter(levels)
        else:
            scale = levels.abs().max().clamp_min(1e-12) if encoding.tied == "scale" else None
            self.scale = None if scale is None else nn.Parameter(scale)
            self.register_buffer("levels", levels if scale is None else levels / scale)

    def sizes(self) -> dict[str, Any]:
        """Say how many levels there are, how they are tied, and how many codes share a byte."""
        return {"k": self.k, "tied": self.tied, "per_byte": self.per_byte}

    @classmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> Codes:
        """Make codes that are all 0, with levels of 0."""
        codes = torch.zeros(math.prod(shape), dtype=torch.int64)
        # Checkpoints of versions that packed all codes do not say how.
        per_byte = sizes.get("per_byte", codes_per_byte(sizes["k"]))
        return cls(Quantized(torch.zeros(sizes["k"]), codes, sizes["tied"]), shape, per_byte)

    @property
    def numbers(self) -> int:
        """Each weight has a code and counts as one."""
        return self.count

    def forward(self) -> Tensor:
        """Look up the level of each code; in training the levels or their scale get gradients; → `shape`."""
        if self.training and torch.is_grad_enabled():
            codes = self.packed if self.digits is None else self._unpacked(self.digits)
            return self._trained(codes.long()).reshape(self.shape)
        levels = self.levels if self.scale is None else self.levels * self.scale
        if self.digits is None:
            return levels.index_select(0, self.packed.to(torch.int32)).reshape(self.shape)
        # `index_select` on one dimension takes a fifth of the time of indexing with a tensor.
        return self._unpacked(levels.index_select(0, self.digits.to(torch.int32))).reshape(self.shape)

    def _unpacked(self, table: Tensor) -> Tensor:
        """What the bytes stand for, given what all of their digits do; `(k^m · m,)` → `(n,)`."""
        rows = table.reshape(-1, self.per_byte).index_select(0, self.packed.to(torch.int32))
        # Padding in the last byte is cut off.
        return rows if self.count % self.per_byte == 0 else rows.reshape(-1)[: self.count]

    def _digits(self) -> Tensor | None:
        """What bytes stand for, shared by all layers with as many levels, so that a file has it once; None
        where a byte is a code."""
        return None if self.per_byte == 1 else digits(self.k, self.per_byte, self.packed.device)

    def _trained(self, codes: Tensor) -> Tensor:
        """The same, with the gradient of a step on the weights that is projected on what they can be.

        A level's gradient is the mean over its weights, not their sum, which would move it as far as
        all of them together: dl_k = mean of dw over code k; dc = Σ s dw / Σ s² where w = c·s.
        """
        codes = codes.reshape(-1)
        # Not by `bincount`, which waits for a GPU to know how long its answer is.
        counts = codes.new_zeros(self.k).scatter_add(0, codes, codes.new_ones(()).expand(codes.shape))
        if self.scale is None:
            levels = self.levels
            if self.tied == "nonzero":
                levels = torch.where(levels == 0, levels.detach(), levels)
            return _damped(levels, counts)[codes]
        norm = (counts * self.levels.square()).sum()
        return (self.levels * _damped(self.scale, norm))[codes]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codes:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Moved layer by layer, the shared digits would become as many copies.
        self.digits = self._digits()
        return self


def _damped(parameter: Tensor, divisor: Tensor) -> Tensor:
    """The parameter itself, whose gradient is divided."""
    fixed = parameter.detach()
    return fixed + (parameter - fixed) / divisor.clamp_min(1)


class Half(WeightCode):
    """Numbers in half precision, which do not train: steps would be lost in their rounding."""

    kind = "half"
    halves: Tensor
    like: Tensor

    def __init__(self, encoding: Rounded, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.register_buffer("halves", encoding.values.detach().reshape(shape).half())
        # Its type is that of the model, which computes in it.
        self.register_buffer("like", encoding.values.new_zeros(0), persistent=False)

    def sizes(self) -> dict[str, Any]:
        """Say nothing beside the shape."""
        return {}

    @classmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> Half:
        """Make as many zeros."""
        return cls(Rounded(torch.zeros(math.prod(shape))), shape)

    @property
    def numbers(self) -> int:
        """Each number counts as one."""
        return self.halves.numel()

    def forward(self) -> Tensor:
        """Give the numbers in the precision of the model; → `shape`."""
        return self.halves.to(self.like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Half:
        kept = self.halves
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # What changes the precision of a model changes what it computes in, not what is stored.
        self.halves = kept.to(self.like.device)
        return self


class Sparse(WeightCode):
    """The values that are not zero, and how many zeros precede each, one byte.

    Where more than 255 zeros follow one another, a zero is stored as a value on the way; it stays zero.
    Bytes of this kind are compressed as well as a bit for each weight is, and take one operation for each
    value to decode, not for each weight.
    """

    kind = "sparse"
    gaps: Tensor

    def __init__(self, encoding: Pruned, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        gaps, values = _gaps(encoding.values)
        self.count = len(encoding.values)
        self.register_buffer("gaps", gaps)
        self.values = nn.Parameter(values.detach().clone())

    def sizes(self) -> dict[str, Any]:
        """Say how many values are stored."""
        return {"values": len(self.values)}

    @classmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> Sparse:
        """Make as many values, all of them 0."""
        code = cls(Pruned(torch.zeros(math.prod(shape))), shape)
        code.gaps = code.gaps.new_zeros(sizes["values"])
        code.values = nn.Parameter(torch.zeros(sizes["values"]))
        return code

    @property
    def numbers(self) -> int:
        """Each stored value counts as one."""
        return len(self.values)

    def forward(self) -> Tensor:
        """Put the values at their places between zeros; in training those that are 0 stay so; → `shape`."""
        values: Tensor = self.values
        if self.training and torch.is_grad_enabled():
            values = values * (values != 0)
        return _between_zeros(self.gaps, values, self.count).reshape(self.shape)


class SparseCodes(WeightCode):
    """Codes of the values that are not zero, and how many zeros precede each, one byte: pruning and a
    codebook in one, of which zero is a level.

    Gaps and codes are each near their entropy once the file's compression has coded them, where a code for
    each weight would cost a bit at least, and runs of zeros cost as much as where they begin and end.
    """

    kind = "sparse_codes"
    gaps: Tensor

    def __init__(self, encoding: Quantized, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        # One more than its place among the levels, as zero is none.
        placed = torch.where(encoding.levels.index_select(0, encoding.codes) == 0, 0, encoding.codes + 1)
        gaps, values = _gaps(placed)
        used, codes = torch.unique(values, return_inverse=True)
        levels = torch.cat([encoding.levels.new_zeros(1), encoding.levels.detach()])[used]
        self.count = len(encoding.codes)
        self.register_buffer("gaps", gaps)
        self.values = Codes(Quantized(levels, codes, "nonzero"), tuple(values.shape))

    def sizes(self) -> dict[str, Any]:
        """Say how many values are stored, and how."""
        return {"values": len(self.gaps), "of": self.values.sizes()}

    @classmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> SparseCodes:
        """Make codes of as many values, all of them 0."""
        code = cls(Quantized(torch.zeros(1), torch.zeros(math.prod(shape), dtype=torch.int64)), shape)
        code.gaps = code.gaps.new_zeros(sizes["values"])
        code.values = Codes.empty((sizes["values"],), **sizes["of"])
        return code

    @property
    def numbers(self) -> int:
        """Each stored value counts as one."""
        return len(self.gaps)

    def forward(self) -> Tensor:
        """Put the levels that values are at their places between zeros; → `shape`."""
        return _between_zeros(self.gaps, self.values(), self.count).reshape(self.shape)


def _between_zeros(gaps: Tensor, values: Tensor, count: int) -> Tensor:
    """Values at their places, each after so many zeros, `(m,)` → `(count,)`."""
    positions = torch.cumsum(gaps.to(torch.int64) + 1, 0) - 1
    empty = torch.zeros(count, dtype=values.dtype, device=values.device)
    return empty.scatter(0, positions, values)


def _gaps(values: Tensor) -> tuple[Tensor, Tensor]:
    """Zeros before each value, uint8, `(m,)`, and the values, `(m,)`; one at least, to have one to place."""
    positions = torch.nonzero(values)[:, 0]
    if not len(positions):
        positions = torch.zeros(1, dtype=torch.int64, device=values.device)
    zeros = torch.diff(positions, prepend=positions.new_full((1,), -1)) - 1
    # A stop after each 255 zeros, whose own value is the 256th.
    stops = zeros // 256
    ends = torch.cumsum(stops + 1, 0) - 1
    gaps = torch.full((int(ends[-1]) + 1,), 255, dtype=torch.uint8, device=values.device)
    gaps[ends] = (zeros % 256).to(torch.uint8)
    placed = values.new_zeros(len(gaps))
    placed[ends] = values[positions]
    return gaps, placed


class Product(WeightCode):
    """Two factors of the folded weight, which train as weights do, and which a code of their own may stand
    for."""

    kind = "product"
    of_weights = True

    def __init__(self, encoding: Factored, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.left = nn.Parameter(encoding.left[0].detach().clone())
        self.right = nn.Parameter(encoding.right[0].detach().clone())
        self.folding: Folding = encoding.folding

    def sizes(self) -> dict[str, Any]:
        """Say how the weight is folded, as a tensor of which shape, and of what rank the factors are."""
        folding = self.folding
        folded = {} if folding.shape == self.shape else {"folded": list(folding.shape)}
        return {"scheme": folding.scheme, "groups": folding.groups, "rank": self.left.shape[1], **folded}

    @classmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> Product:
        """Make factors of that rank that are 0."""
        folding = Folding(tuple(sizes.get("folded", shape)), sizes["scheme"], sizes["groups"])
        left, right = (
            torch.zeros(1, folding.rows, sizes["rank"]),
            torch.zeros(1, sizes["rank"], folding.columns),
        )
        return cls(Factored(left, right, folding), shape)

    @property
    def numbers(self) -> int:
        """Each number of both factors counts as one."""
        return self.left.numel() + self.right.numel()

    def forward(self) -> Tensor:
        """Multiply the factors and unfold the product; → `shape`."""
        return self.folding.unfold((self.left @ self.right)[None]).reshape(self.shape)


class Verbatim(WeightCode):
    """The numbers as they are, which are read as those of other codes are."""

    kind = "verbatim"
    of_weights = True

    def __init__(self, values: Tensor) -> None:
        super().__init__(tuple(values.shape))
        self.values = nn.Parameter(values.detach().clone())

    def sizes(self) -> dict[str, Any]:
        """Say nothing beside the shape."""
        return {}

    @classmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> Verbatim:
        """Make as many zeros."""
        return cls(torch.zeros(shape))

    @property
    def numbers(self) -> int:
        """Each number counts as one."""
        return self.values.numel()

    def forward(self) -> Tensor:
        """Give a copy, as what is decoded is new each time; → `shape`."""
        return self.values.clone()


class Sum(WeightCode):
    """The sum of other codes of the same weight."""

    kind = "sum"

    def __init__(self, parts: Sequence[WeightCode], shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.parts = nn.ModuleList(parts)

    def sizes(self) -> dict[str, Any]:
        """Say of what kind and sizes each part is."""
        parts: Any = self.parts
        return {"parts": [part.spec for part in parts]}

    @classmethod
    def empty(cls, shape: tuple[int, ...], **sizes: Any) -> Sum:
        """Make the parts from their specs, each empty.

        Raises:
            CheckpointError: a part's kind is unknown, or a size is missing.
        """
        return cls([WeightCode.from_spec(part, shape) for part in sizes["parts"]], shape)

    @property
    def numbers(self) -> int:
        """The numbers of all parts count."""
        parts: Any = self.parts
        return sum(int(part.numbers) for part in parts)

    def forward(self) -> Tensor:
        """Add what the parts decode to; → `shape`."""
        total: Tensor = sum(part() for part in self.parts)
        return total


def weight_code(encoding: Encoding, shape: tuple[int, ...]) -> WeightCode:
    """The module that an encoding is stored as, for a weight of that shape."""
    if isinstance(encoding, Quantized):
        return _codes(encoding, shape)
    if isinstance(encoding, Rounded):
        return Half(encoding, shape)
    if isinstance(encoding, Pruned):
        return Sparse(encoding, shape)
    if isinstance(encoding, Factored):
        return Product(encoding, shape)
    return Sum([weight_code(part, shape) for part in encoding.parts], shape)


def _codes(encoding: Quantized, shape: tuple[int, ...]) -> WeightCode:
    """A code for each number; or for those that are not zero alone, where that takes less of a file. Levels
    of an entropy codebook that no number has are left out."""
    if encoding.tied == "nonzero":
        used, codes = torch.unique(encoding.codes, return_inverse=True)
        encoding = Quantized(encoding.levels.index_select(0, used), codes, "nonzero")
    each = Codes(encoding, shape)
    zero = encoding.levels == 0
    if encoding.tied != "nonzero" or not bool(zero.any()):
        return each
    if float(zero.index_select(0, encoding.codes).float().mean()) < _LEAST_ZEROS:
        return each
    others = SparseCodes(encoding, shape)
    return others if _bytes(others) + _SCATTERING < _bytes(each) else each


def _bytes(code: WeightCode) -> int:
    """What the integers of a code take once a file has compressed them."""
    return sum(
        deflated_size(buffer.cpu().numpy().tobytes())
        for name, buffer in code.named_buffers()
        if buffer.dtype == torch.uint8 and not name.endswith("digits")
    )
