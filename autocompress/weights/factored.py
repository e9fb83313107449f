"""Two layers in place of one: the factors of its weight, exact where the weight has that rank."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from autocompress.weights.folding import Folding

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[type[nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Pair = TypeVar("Pair", bound=nn.Sequential)
_SIZES = (
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "padding",
    "num_embeddings", "embedding_dim", "padding_idx", "nx", "nf",
)  # fmt: skip


def layer_kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of layers, all of which two layers can stand for, that a module is of; None where it is of
    none of them."""
    kinds = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *TRANSPOSED, *transposed_linear())
    return next((kind for kind in kinds if isinstance(module, kind)), None)


def transposed_linear() -> tuple[type[nn.Module], ...]:
    """GPT-2's `Conv1D`, a linear layer whose weight is `(inputs, outputs)`, where its library is in use."""
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return () if kind is None else (kind,)


def features_last(layer: nn.Module) -> bool:
    """Whether a layer's features are the last dimension of what it makes; else they are the second one."""
    return not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED))


def outputs_first(kind: type[nn.Module], weight: Tensor, groups: int = 1) -> Tensor:
    """A layer's weight as `(f, c/groups, *kernel)`, or such a tensor as the layer keeps its weight: the same
    rearrangement leads there and back.

    Linear layers and convolutions keep it so; an embedding is a linear layer of one-hot vectors `(V,)`.

    Args:
        kind: of the layer.
        weight: as the layer keeps it, or `(f, c/groups, *kernel)`.
        groups: of a transposed convolution.
    """
    if issubclass(kind, (nn.Embedding, *transposed_linear())):
        return weight.mT
    if issubclass(kind, TRANSPOSED):
        split = weight.reshape(groups, -1, *weight.shape[1:])
        return split.transpose(1, 2).flatten(0, 1)
    return weight


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
    kind: type[nn.Module]

    @property
    def weight(self) -> Tensor:
        """The weight that the factors stand for, computed anew."""
        return outputs_first(self.kind, recompose(self, self.folding), self.folding.groups)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second layer, which is that of the layer they replace; `(f,)` or None."""
        second: Any = self[1]
        bias: Tensor | None = second.bias
        return bias


def layer_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer that two can stand for, `(f, c/groups, *kernel)`, however the layer keeps it."""
    weighted: Any = layer
    kind = layer_kind(layer)
    assert kind is not None
    return outputs_first(kind, weighted.weight, getattr(weighted, "groups", 1))


def folding_of(layer: nn.Module, scheme: int, slices: int) -> Folding:
    """How the weight of a layer that two can stand for is folded."""
    return Folding(tuple(layer_weight(layer).shape), scheme, getattr(layer, "groups", 1), slices)


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
        layer: of a `layer_kind`.
        scheme: of the folding.
        slices: of the input channels of each group; divides them.
        rank: of each slice.
    """
    folding = folding_of(layer, scheme, slices)
    with torch.no_grad():
        left, right = factor_matrices(folding.fold(layer_weight(layer)), rank)
    return factor_pair(layer, folding, left, right)


def factor_pair(layer: nn.Module, folding: Folding, left: Tensor, right: Tensor) -> FactorPair:
    """Two layers in the place of one, with its bias.

    Args:
        layer: of a `layer_kind`.
        folding: of its weight.
        left: `(groups · slices, rows, rank)`.
        right: `(groups · slices, rank, columns)`.
    """
    weighted: Any = layer
    own_bias = getattr(weighted, "bias", None)
    bias = None if own_bias is None else own_bias.detach().clone()
    if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
        pair = FactorPair(*_convolutions(weighted, folding, left, right, bias))
    elif isinstance(layer, nn.Embedding):
        pair = FactorPair(_embedding(layer, right), _linear(left, right, bias)[1])
    else:
        pair = FactorPair(*_linear(left, right, bias))
    kind = layer_kind(layer)
    assert kind is not None
    pair.folding, pair.kind = folding, kind
    # What the user has frozen stays so.
    pair.requires_grad_(weighted.weight.requires_grad)
    if own_bias is not None:
        pair[1].bias.requires_grad_(own_bias.requires_grad)
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


def _embedding(layer: nn.Embedding, right: Tensor) -> nn.Embedding:
    """An embedding like the layer of as many dimensions as the rank is."""
    first = nn.Embedding(
        layer.num_embeddings,
        right.shape[1],
        layer.padding_idx,
        scale_grad_by_freq=layer.scale_grad_by_freq,
        sparse=layer.sparse,
        device="meta",
    )
    first.weight = nn.Parameter(right[0].mT.contiguous())
    return first


def _convolutions(
    layer: Any, folding: Folding, left: Tensor, right: Tensor, bias: Tensor | None
) -> tuple[nn.Module, nn.Module]:
    """A grouped convolution over the columns' kernel, and one over the rows'."""
    f, c, rank = layer.out_channels, layer.in_channels, left.shape[2]
    parts, rows = folding.groups * folding.slices, folding.in_rows
    middle = parts * rank
    first = _part(layer, c, middle, parts, [not row for row in rows], bias=False)
    second = _part(layer, middle, f, folding.groups, list(rows), bias=bias is not None)
    weight = right.reshape(middle, c // parts, *folding.column_kernel)
    first.weight = nn.Parameter(outputs_first(type(first), weight, parts).clone())
    # (groups, slices, f/groups, *row kernel, rank) → (f, slices · rank, *row kernel)
    kernel = folding.row_kernel
    split = left.reshape(folding.groups, folding.slices, f // folding.groups, *kernel, rank)
    last = 3 + len(kernel)
    order = [0, 2, 1, last, *range(3, last)]
    weight = split.permute(order).reshape(f, folding.slices * rank, *kernel)
    second.weight = nn.Parameter(outputs_first(type(second), weight, folding.groups).contiguous())
    if bias is not None:
        second.bias = nn.Parameter(bias)
    return first, second


def _part(layer: Any, inputs: int, outputs: int, groups: int, own: list[bool], bias: bool) -> Any:
    """A convolution with the layer's settings in its own dimensions and none in the others."""
    padding = layer.padding
    if not isinstance(padding, str):
        padding = tuple(p if is_own else 0 for p, is_own in zip(padding, own, strict=True))
    plain: Any = layer_kind(layer)
    options: dict[str, Any] = {}
    if issubclass(plain, TRANSPOSED):
        grown = zip(layer.output_padding, own, strict=True)
        options["output_padding"] = tuple(p if is_own else 0 for p, is_own in grown)
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
        **options,
    )


def recompose(pair: nn.Sequential, folding: Folding) -> Tensor:
    """The weight that two factors stand for, `(f, c/groups, *kernel)`."""
    # Slices of a linear layer have a class of their own.
    first, second = (layer.weight if layer_kind(layer) is None else layer_weight(layer) for layer in pair)
    parts = folding.groups * folding.slices
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    right = first.reshape(parts, -1, folding.columns)
    rank, f, kernel = right.shape[1], folding.shape[0], folding.row_kernel
    split = second.reshape(folding.groups, f // folding.groups, folding.slices, rank, *kernel)
    last = 4 + len(kernel)
    left = split.permute(0, 2, 1, *range(4, last), 3).reshape(parts, folding.rows, rank)
    return folding.unfold(left @ right)
