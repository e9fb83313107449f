"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Mlp(nn.Module):
    """Flatten, then linear layers with an activation between them; `(B, ...)` → `(B, classes)`.

    Args:
        widths: features of each layer, the input's and the number of classes included.
        activation: between layers.
    """

    def __init__(self, widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        for position in range(len(widths) - 1):
            setattr(self, f"fc{position + 1}", nn.Linear(widths[position], widths[position + 1]))
        self.depth = len(widths) - 1
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Classify inputs of any shape; `(B, ...)` → `(B, classes)`."""
        x = x.flatten(1)
        for position in range(1, self.depth):
            x = self.activation(self.get_submodule(f"fc{position}")(x))
        outputs: Tensor = self.get_submodule(f"fc{self.depth}")(x)
        return outputs
