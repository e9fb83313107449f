"""Depth pruning: layers between cut points are deleted and bridged by fitted translators.

Camacho et al., *Auto-compression transfer learning methodology for deep CNNs*, Neurocomputing 630
(2025) 129661, 10.1016/j.neucom.2025.129661.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from autocompress.errors import TrialError
from autocompress.graph import Analysis, CutPairs, CutPoint, analyse, within
from autocompress.graph.bridging import OUTPUT, Bridge, bridge, tap
from autocompress.graph.costs import layer_macs
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import check_graph
from autocompress.methods.base import Finished, Method, Session, Stage
from autocompress.methods.depth.config import Config
from autocompress.methods.depth.translator import fit, refine
from autocompress.surgery.bridges import BridgeEnds, BridgeLayers, without_unused_layers
from autocompress.surgery.translators import Translator
from autocompress.task import Inputs, ModelProfile, Task, call, moved
from autocompress.task.inputs import answer, leaves, split_rows, take

_PREFIX = "translator_"
_HEAD = "translator_head"
_MOST_ELEMENTS = 1 << 26  # of a tensor that a translator is fitted on, a quarter of a gigabyte


class Depth(Method):
    """Depth pruning by bridging pairs of cut points with translators fitted in closed form."""

    Config: ClassVar[type[Config]] = Config
    stage: ClassVar[Stage] = Stage.DEPTH

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        """Refuse a model without two cut points that a translator can bridge."""
        legal = any(cut.partners for cut in profile.cut_points)
        return None if legal else "the model has no two cut points that a translator can bridge"

    @classmethod
    def needs_graph(cls, model: nn.Module, analysis: Analysis) -> bool:
        """Bridges are put into the graph."""
        return True

    def start(self, model: nn.Module, task: Task) -> DepthSession:
        """Bridge the model's cut points by translators that are fitted to the layers they replace.

        Raises:
            TrialError: the cuts or the head do not fit the model.
        """
        return DepthSession(self.config, model, task)


class DepthSession(Session):
    """The bridged model, its bridges, each translator's relative error, and what is left of the MACs."""

    def __init__(self, config: Config, model: nn.Module, task: Task) -> None:
        self.config = config
        self.ends: list[BridgeEnds] = []
        self.bridges: list[Bridge] = []
        self.errors: dict[str, float] = {}
        like = next(p for p in model.parameters() if p.is_floating_point())
        example = task.example()
        analysis = within(analyse(model, example), task.limits_of(model))
        near = moved(example, like.device)
        check_graph(model, bridge(model, analysis, []), near)
        inputs = moved(task.calibration_rows(config.calibration), like.device)
        with self.starting():
            for a, b in config.cuts:
                self._bridge(model, analysis, (a, b), inputs, like)
        if config.head_width:
            self._add_head(model, analysis, near, like)
        self.bridged = bridge(model, analysis, self.bridges)
        self.model = self.bridged
        left, total = (layer_macs(network, near)[""] for network in (self.model, model))
        self.share = left / max(1, total)
        if config.freeze == "backbone":
            own = {added.name for added in self.bridges}
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name.partition(".")[0] in own)

    def after_epoch(self, progress: float) -> Mapping[str, float]:
        """Log the error that each translator began with and the share of MACs that is left."""
        errors = {f"translator_error/{name}": error for name, error in self.errors.items()}
        return errors | {"ratio/macs": self.share}

    def finish(self) -> Finished:
        """The bridged model itself, without the layers that nothing uses any more.

        With a frozen backbone, translators and a new head train alone to the end of the trial.
        """
        smaller = without_unused_layers(self.bridged)
        edits = (BridgeLayers(tuple(self.ends)),) if self.ends else ()
        return Finished(smaller, edits, self.model)

    def _bridge(
        self, model: nn.Module, analysis: Analysis, cut: tuple[int, int], inputs: Inputs, like: Tensor
    ) -> None:
        """Fit a translator for a pair of cut points, given those before it."""
        config = self.config
        start, end = _ends(analysis, *cut)
        ends = BridgeEnds(
            start.node,
            end.node,
            _free(model, f"{_PREFIX}{cut[0]}_{cut[1]}"),
            start.shape,
            end.shape,
            start.tokens,
            config.translator,
        )
        translator = ends.module().to(like)
        assert isinstance(translator, Translator)
        most = max(16, _MOST_ELEMENTS // max(math.prod(start.shape), math.prod(end.shape)))
        tensors = _activations(
            model, analysis, self.bridges, (start.node, end.node), take(inputs, slice(most))
        )
        self.errors[ends.name] = fit(translator, *tensors, config.ridge)
        if config.refine_steps:
            self.errors[ends.name] = refine(translator, *tensors, config.refine_steps)
        self._add(ends, translator)

    def _add_head(self, model: nn.Module, analysis: Analysis, example: Inputs, like: Tensor) -> None:
        last = analysis.cut_points[-1]
        reason = CutPairs(analysis).why_illegal(len(analysis.cut_points) - 1, None)
        if reason is not None:
            raise TrialError(f"head_width must be 0 where a new head cannot be put: {reason}.")
        with torch.no_grad():
            classes = tuple(answer(call(model.eval(), example)).shape[1:])
        if len(classes) != 1:
            raise TrialError(f"head_width must be 0 where outputs are not (B, classes) but {classes}.")
        ends = BridgeEnds(
            last.node,
            OUTPUT,
            _free(model, _HEAD),
            last.shape,
            classes,
            last.tokens,
            width=self.config.head_width,
        )
        self._add(ends, ends.module().to(like))

    def _add(self, ends: BridgeEnds, module: nn.Module) -> None:
        self.ends.append(ends)
        self.bridges.append(Bridge(ends.start, ends.end, ends.name, module))


def _ends(analysis: Analysis, a: int, b: int) -> tuple[CutPoint, CutPoint]:
    cuts = analysis.cut_points
    if b >= len(cuts):
        raise TrialError(f"cuts must be below the model's {len(cuts)} cut points but got {b}.")
    reason = CutPairs(analysis).why_illegal(a, b)
    if reason is not None:
        raise TrialError(f"cuts ({a}, {b}) cannot be bridged: {reason}.")
    return cuts[a], cuts[b]


def _free(model: nn.Module, name: str) -> str:
    """A name that nothing in the model has; it may have been bridged before."""
    while hasattr(model, name):
        name += "_"
    return name


def _activations(
    model: nn.Module, analysis: Analysis, bridges: list[Bridge], ends: tuple[str, str], inputs: Inputs
) -> tuple[Tensor, Tensor]:
    """The earlier tensor as the bridged model makes it, and the later one as the whole model does."""
    start, end = ends
    # Where an earlier bridge ends at this cut point, its translator makes the tensor.
    start = next((earlier.name for earlier in bridges if earlier.end == start), start)
    bridged = bridge(model, analysis, bridges)
    original = bridge(model, analysis, [])
    tensors: list[Tensor] = []
    with torch.no_grad(), plain_attention():
        for module, name in ((bridged, start), (original, end)):
            tapped = tap(module, module.graph, [name]).eval()
            tensors.append(torch.cat([tapped(*leaves(part))[0] for part in split_rows(inputs, 128)]))
    return tensors[0], tensors[1]
