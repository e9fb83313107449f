"""`Encode`: a parameter is stored as what it is decoded from when it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from autocompress.errors import CheckpointError
from autocompress.surgery.edits import Edit
from autocompress.task import Inputs
from autocompress.weights.decoders import WeightCode
from autocompress.weights.encoded import install_code


@dataclass(frozen=True)
class Encode(Edit):
    """Store a parameter as codes, sparse values, factors, a sum of these, or a plug-in's own code.

    Args:
        layer: name of the module that it is of.
        code: what `WeightCode.spec` says of the code: its kind and sizes.
        parameter: its name in the module; other modules that share it share the code.
    """

    kind: ClassVar[str] = "encode"
    layer: str
    code: dict[str, Any]
    parameter: str = "weight"

    @property
    def of_weights(self) -> bool:
        """Whether a further method may compress what the parameter is decoded from."""
        kind = WeightCode.kinds.get(self.code["kind"])
        return kind is not None and kind.of_weights

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Let the parameter, in place, be decoded from an empty code of this kind and size.

        Raises:
            CheckpointError: the layer has no such parameter, or the code is not readable.
        """
        layer = dict(model.named_modules()).get(self.layer)
        parameter = None if layer is None else layer._parameters.get(self.parameter)
        if parameter is None:
            raise CheckpointError(f"layer must be one that has a {self.parameter} but got {self.layer!r}.")
        name = ".".join(filter(None, (self.layer, self.parameter)))
        install_code(model, WeightCode.from_spec(self.code, tuple(parameter.shape)), name)
        return model
