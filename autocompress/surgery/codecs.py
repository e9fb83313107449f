"""`Encode`: a weight is stored as what it is decoded from when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from autocompress.errors import CheckpointError
from autocompress.surgery.edits import Edit
from autocompress.task import Inputs
from autocompress.weights.decoders import WeightCode, install_code


@dataclass(frozen=True)
class Encode(Edit):
    """Store a layer's weight as codes, sparse values, factors, a sum of these, or a plug-in's own code.

    Args:
        layer: name of the layer.
        code: what `WeightCode.spec` says of the code: its kind and sizes.
    """

    kind: ClassVar[str] = "encode"
    layer: str
    code: dict[str, Any]

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Give the layer, in place, an empty code of this kind and size for its weight.

        Raises:
            CheckpointError: the layer has no weight, or the code is not readable.
        """
        layer = dict(model.named_modules()).get(self.layer)
        weight = getattr(layer, "weight", None)
        if layer is None or not isinstance(weight, Tensor):
            raise CheckpointError(f"layer must be one that has a weight but got {self.layer!r}.")
        install_code(layer, WeightCode.from_spec(self.code, tuple(weight.shape)))
        return model
