"""Small models of every kind that the analysis must understand, or leave alone with a reason."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear layers, PReLU and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(192, 24), nn.PReLU(24)
        self.middle, self.head = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x.flatten(1)))
        return self.head(x + torch.relu(self.middle(x)))


class Conv1d(nn.Module):
    """A 1-D CNN over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv1d(24, 16, 3), nn.BatchNorm1d(16)
        self.down, self.head = nn.Conv1d(16, 8, 3, stride=2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x.flatten(1, 2))))
        return self.head(self.down(x).mean(2))


class UNet(nn.Module):
    """Down, up by a transposed convolution, a long skip and group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.enter_norm = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.down, self.down_norm = nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(8, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.join, self.join_norm = nn.Conv2d(32, 16, 3, padding=1), nn.GroupNorm(1, 16)
        self.leave = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.enter_norm(self.enter(x)))
        deep = F.silu(self.down_norm(self.down(skip)))
        joined = self.join(torch.cat([skip, self.up(deep)], dim=1))
        return self.leave(F.silu(self.join_norm(joined)))


class Tokens(nn.Module):
    """Images as 4 × 4 patches through a body of token layers; the mean token is classified."""

    def __init__(self, body: nn.Module, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, width))
        self.body, self.head = body, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.body(tokens).mean(1))


class FusedAttention(nn.Module):
    """One projection for query, key and value, as in timm."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return x + self.proj((scores @ v).transpose(1, 2).reshape(b, t, c))


class SplitAttention(nn.Module):
    """Projections of their own for query, key and value, as in Hugging Face's models."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def spread(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.spread(self.query(x)), self.spread(self.key(x)), self.spread(self.value(x))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class EinsumAttention(nn.Module):
    """Attention scores as einsums, keys and values from one projection split in two."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.both = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.both(x).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (self.query(x), k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k).softmax(-1) / 3
        return x + self.out(torch.einsum("bhts,bshd->bthd", scores, v).flatten(2))


class Shuffle(nn.Module):
    """Two halves, one of them through a branch, then a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.branch, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        still, moving = self.stem(x).relu().chunk(2, dim=1)
        x = torch.cat([still, self.norm(self.branch(moving)).relu()], dim=1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels scaled by what they are on average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        b, c = x.shape[:2]
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return self.head((x * scale.view(b, c, 1, 1)).mean((2, 3)))


class Shared(nn.Module):
    """One layer called twice, and one weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(192, 12), nn.Linear(12, 12)
        self.twin, self.head = nn.Linear(12, 12), nn.Linear(12, 5)
        self.twin.weight = self.middle.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        x = torch.relu(self.middle(torch.relu(self.middle(x))))
        return self.head(self.twin(x))


class Functional(nn.Module):
    """A convolution and a linear layer without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(6, 10))
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.conv2d(x, self.weight).relu().mean((2, 3)) @ self.matrix))


class Lstm(nn.Module):
    """A recurrent classifier of two layers in both directions, which reads outputs and final states."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(24, 16)
        self.rnn = nn.LSTM(16, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(36, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.relu(self.enter(x.flatten(2).transpose(1, 2).reshape(-1, 8, 24)))
        outputs, (final, _) = self.rnn(rows)
        return self.head(torch.relu(self.hidden(torch.cat([outputs.mean(1), final[-1]], 1))))


class Projection(nn.Module):
    """A linear layer as GPT-2 has it: weights `(inputs, outputs)`, and sizes of its own."""

    def __init__(self, nx: int, nf: int) -> None:
        super().__init__()
        self.nx, self.nf = nx, nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class Projections(nn.Module):
    """Such layers around a skip, on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.wide, self.narrow = Projection(24, 16), Projection(16, 20), Projection(20, 16)
        self.head = Projection(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x.flatten(2).transpose(1, 2).reshape(-1, 8, 24))
        return self.head(x + self.narrow(F.gelu(self.wide(x)))).mean(1)


class Branching(nn.Module):
    """Control flow that depends on data, which cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(192, 5), nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.one(x) if x.sum() > 0 else self.other(x)


def encoder() -> nn.Module:
    """PyTorch's own transformer encoder on tokens."""
    layer = nn.TransformerEncoderLayer(24, 4, 40, dropout=0.1, batch_first=True, norm_first=True)
    return Tokens(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


class CrossAttention(nn.Module):
    """PyTorch's attention with keys of another width, then of the same width."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Linear(24, 16)
        self.cross = nn.MultiheadAttention(24, 4, kdim=16, vdim=16, batch_first=True)
        self.again = nn.MultiheadAttention(24, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.small(x))
        x = x + self.cross(x, y, y, need_weights=False)[0]
        return x + self.again(x, torch.tanh(x), torch.tanh(x), need_weights=False)[0]


class Constants(nn.Module):
    """Sub-modules that make tensors in `forward` or hold plain ones, as GPT-2's attention does."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(24, 24), torch.tensor(1.5)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.layer(x)) * torch.tensor(0.5) * self.scale

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(192, 24), nn.Linear(24, 5)
        self.blocks = nn.Sequential(self.Block(), self.Block())
        # Where a constant of a sub-module might be put by the name that the graph gives it.
        self.register_buffer("blocks_0_lifted_tensor_0", torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.first(x.flatten(1)))) * self.blocks_0_lifted_tensor_0


MODELS = {
    "constants": Constants,
    "mlp": Mlp,
    "conv1d": Conv1d,
    "unet": UNet,
    "fused_attention": lambda: Tokens(nn.Sequential(FusedAttention(), FusedAttention())),
    "split_attention": lambda: Tokens(SplitAttention()),
    "einsum_attention": lambda: Tokens(EinsumAttention()),
    "transformer_encoder": encoder,
    "cross_attention": lambda: Tokens(CrossAttention()),
    "shuffle": Shuffle,
    "squeeze_excite": SqueezeExcite,
    "shared": Shared,
    "functional": Functional,
    "lstm": Lstm,
    "projections": Projections,
}
