"""Two layers in place of one: the factors of its weight, exact where the weight has that rank."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from autocompress.weights.folding import Folding

FACTORABLE: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Pair = TypeVar("Pair", bound=nn.Sequential)
_SIZES = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding")


class SlicedLinear(nn.Module):
    """Linear layers side by side, one for each slice of the features; `(..., c)` → `(..., k · j)`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply each slice's layer to its own features; `(..., k · c)` → `(..., k · j)`."""
        k, _, c = self.weight.shape
        return torch.einsum("...kc,kjc->...kj", x.reshape(*x.shape[:-1], k, c), self.weight).flatten(-2)


class FactorPair(nn.Sequential):
    """Two layers in place of one, with what the model's own code may ask that one for.

    `nn.TransformerEncoderLayer` reads the weights of its layers to choose a faster kernel.
    """

    folding: Folding

    @property
    def weight(self) -> Tensor:
        """The weight that the factors stand for, computed anew."""
        return recompose(self, self.folding)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second layer, which is that of the layer they replace; `(f,)` or None."""
        second: Any = self[1]
        bias: Tensor | None = second.bias
        return bias


def folding_of(layer: nn.Module, scheme: int, slices: int) -> Folding:
    """How a linear or convolution layer's weight is folded."""
    weighted: Any = layer
    return Folding(tuple(weighted.weight.shape), scheme, getattr(weighted, "groups", 1), slices)


def factor_matrices(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`(n, rows, rank)` and `(n, rank, columns)` whose product is nearest to `(n, rows, columns)`.

    Each takes the square root of the singular values, so that both train alike. Where a singular value is
    nothing, as in a layer that starts from zero, the right one keeps its unit vector: two factors of zero
    would never get a gradient.
    """
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = s[:, :rank]
    scale = torch.where(values > torch.finfo(torch.float32).eps * s[:, :1], values.sqrt(), 1.0)
    left, right = u[:, :, :rank] * (values / scale)[:, None, :], scale[:, :, None] * vh[:, :rank]
    return left.to(matrices.dtype).contiguous(), right.to(matrices.dtype).contiguous()


def factorize_layer(layer: nn.Module, scheme: int, slices: int, rank: int) -> FactorPair:
    """Two layers that compute what `layer` would with its weight cut to this rank.

    Args:
        layer: one of `FACTORABLE`.
        scheme: of the folding.
        slices: of the input channels of each group; divides them.
        rank: of each slice.
    """
    weighted: Any = layer
    folding = folding_of(layer, scheme, slices)
    with torch.no_grad():
        left, right = factor_matrices(folding.fold(weighted.weight), rank)
    return factor_pair(layer, folding, left, right)


def factor_pair(layer: nn.Module, folding: Folding, left: Tensor, right: Tensor) -> FactorPair:
    """Two layers in the place of one, with its bias.

    Args:
        layer: one of `FACTORABLE`.
        folding: of its weight.
        left: `(groups · slices, rows, rank)`.
        right: `(groups · slices, rank, columns)`.
    """
    weighted: Any = layer
    bias = None if weighted.bias is None else weighted.bias.detach().clone()
    if isinstance(layer, nn.Linear):
        pair = FactorPair(*_linear(left, right, bias))
    else:
        pair = FactorPair(*_convolutions(weighted, folding, left, right, bias))
    pair.folding = folding
    # What the user has frozen stays so.
    pair.requires_grad_(weighted.weight.requires_grad)
    if weighted.bias is not None:
        pair[1].bias.requires_grad_(weighted.bias.requires_grad)
    return _with_sizes(pair, layer)


def stand_in(layer: nn.Module) -> nn.Sequential:
    """What the model's own code would find in the layer's place, computing the same."""
    return _with_sizes(nn.Sequential(layer), layer)


def _with_sizes(pair: Pair, layer: nn.Module) -> Pair:
    for name in _SIZES:
        # The model's own code may ask the layer for them.
        if hasattr(layer, name):
            setattr(pair, name, getattr(layer, name))
    return pair


def _linear(left: Tensor, right: Tensor, bias: Tensor | None) -> tuple[nn.Module, nn.Module]:
    k, f, rank = left.shape
    first: Any = SlicedLinear(right)
    if k == 1:
        first = nn.Linear(right.shape[2], rank, bias=False, device="meta")
        first.weight = nn.Parameter(right[0].clone())
    second = nn.Linear(k * rank, f, bias=bias is not None, device="meta")
    second.weight = nn.Parameter(left.permute(1, 0, 2).reshape(f, k * rank).contiguous())
    if bias is not None:
        second.bias = nn.Parameter(bias)
    return first, second


def _convolutions(
    layer: Any, folding: Folding, left: Tensor, right: Tensor, bias: Tensor | None
) -> tuple[nn.Module, nn.Module]:
    """A grouped convolution over the columns' kernel, and one over the rows'."""
    f, c, rank = layer.out_channels, layer.in_channels, left.shape[2]
    parts, rows = folding.groups * folding.slices, folding.in_rows
    middle = parts * rank
    first = _part(layer, c, middle, parts, [not row for row in rows], bias=False)
    second = _part(layer, middle, f, folding.groups, list(rows), bias=bias is not None)
    first.weight = nn.Parameter(right.reshape(middle, c // parts, *folding.column_kernel).clone())
    # (groups, slices, f/groups, *row kernel, rank) → (f, slices · rank, *row kernel)
    kernel = folding.row_kernel
    split = left.reshape(folding.groups, folding.slices, f // folding.groups, *kernel, rank)
    last = 3 + len(kernel)
    order = [0, 2, 1, last, *range(3, last)]
    weight = split.permute(order).reshape(f, folding.slices * rank, *kernel)
    second.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        second.bias = nn.Parameter(bias)
    return first, second


def _part(layer: Any, inputs: int, outputs: int, groups: int, own: list[bool], bias: bool) -> Any:
    """A convolution with the layer's settings in its own dimensions and none in the others."""
    padding = layer.padding
    if not isinstance(padding, str):
        padding = tuple(p if is_own else 0 for p, is_own in zip(padding, own, strict=True))
    plain = next(cls for cls in CONVOLUTIONS if isinstance(layer, cls))
    return plain(
        inputs,
        outputs,
        tuple(k if is_own else 1 for k, is_own in zip(layer.kernel_size, own, strict=True)),
        stride=tuple(s if is_own else 1 for s, is_own in zip(layer.stride, own, strict=True)),
        padding=padding,
        dilation=tuple(d if is_own else 1 for d, is_own in zip(layer.dilation, own, strict=True)),
        groups=groups,
        bias=bias,
        padding_mode=layer.padding_mode,
        device="meta",
    )


def recompose(pair: nn.Sequential, folding: Folding) -> Tensor:
    """The weight that two factors stand for, of the dense layer's shape."""
    first, second = (layer.weight for layer in pair)
    parts = folding.groups * folding.slices
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    right = first.reshape(parts, -1, folding.columns)
    rank, f, kernel = right.shape[1], folding.shape[0], folding.row_kernel
    split = second.reshape(folding.groups, f // folding.groups, folding.slices, rank, *kernel)
    last = 4 + len(kernel)
    left = split.permute(0, 2, 1, *range(4, last), 3).reshape(parts, folding.rows, rank)
    return folding.unfold(left @ right)
