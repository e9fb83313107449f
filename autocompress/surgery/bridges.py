"""`BridgeLayers`: layers between cut points of a model's graph go, and modules stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from autocompress.graph import Analysis, analyse
from autocompress.graph.bridging import OUTPUT, Bridge, bridge
from autocompress.surgery.edits import Edit
from autocompress.surgery.translators import Head, Kind, Shape, Translator
from autocompress.task import Inputs


@dataclass(frozen=True)
class BridgeEnds:
    """From the tensor of a cut point to that of a later one, or to the model's output, by one module.

    Args:
        start: graph node of the earlier cut point.
        end: graph node of the later one; `OUTPUT` for the model's output, which a head leads to.
        name: under which the module is registered.
        before: shape of the earlier tensor, without the batch.
        after: shape of the later one.
        tokens: the earlier tensor is a sequence of tokens.
        translator: kind of the translator.
        width: of a head's hidden layer; 0 where it is a translator.
    """

    start: str
    end: str
    name: str
    before: Shape
    after: Shape
    tokens: bool
    translator: Kind = "linear"
    width: int = 0

    def module(self) -> nn.Module:
        """The module that stands for the layers between, untrained."""
        if self.width:
            return Head(self.before, self.tokens, self.width, self.after[0])
        return Translator(self.before, self.after, self.translator, self.tokens)


@dataclass(frozen=True)
class BridgeLayers(Edit):
    """Bridge pairs of cut points, and drop the layers that nothing uses any more.

    Args:
        ends: disjoint, from input to output.
    """

    kind: ClassVar[str] = "bridge_layers"
    ends: tuple[BridgeEnds, ...]

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Trace the model and give its graph with an untrained module on each bridge."""
        like = next(p for p in model.parameters() if p.is_floating_point())
        return bridge_layers(
            model, analyse(model, example), self.ends, [e.module().to(like) for e in self.ends]
        )


def bridge_layers(
    model: nn.Module, analysis: Analysis, ends: Sequence[BridgeEnds], modules: Sequence[nn.Module]
) -> fx.GraphModule:
    """A graph module in which modules stand for the layers between, which it does not have any more.

    Args:
        model: whose other layers the result shares.
        analysis: of this model.
        ends: disjoint, from input to output.
        modules: for each of them.
    """
    bridges = [
        Bridge(pair.start, pair.end, pair.name, module) for pair, module in zip(ends, modules, strict=True)
    ]
    return without_unused_layers(bridge(model, analysis, bridges))


def without_unused_layers(model: fx.GraphModule) -> fx.GraphModule:
    """The same graph, without the modules that it does not use: a graph module holds what its graph names."""
    return fx.GraphModule(model, model.graph, type(model).__name__)


__all__ = ["OUTPUT", "BridgeEnds", "BridgeLayers", "bridge_layers", "without_unused_layers"]
