"""Depth pruning: layers between cut points are deleted and bridged by fitted translators.

Camacho et al., *Auto-compression transfer learning methodology for deep CNNs*, Neurocomputing 630
(2025) 129661, 10.1016/j.neucom.2025.129661.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from autocompress.errors import SettingsError, TrialError
from autocompress.graph import Analysis, CutPoint, analyse, why_illegal
from autocompress.graph.bridging import OUTPUT, Bridge, bridge, layers_between, tap, used_layers
from autocompress.graph.costs import layer_macs
from autocompress.graph.exporting import plain_attention
from autocompress.graph.proof import check_graph
from autocompress.methods.base import Compressor, CompressorState
from autocompress.methods.depth.translator import KINDS, Kind, Translator, fit, refine
from autocompress.methods.shared.settings import at_least_0
from autocompress.surgery.edits import DropBlock, Plan
from autocompress.task import ModelProfile, Task

Freeze = Literal["none", "backbone"]
_PREFIX = "translator_"
_HEAD = "translator_head"
_MOST_ELEMENTS = 1 << 26  # of a tensor that a translator is fitted on, a quarter of a gigabyte


@dataclass(frozen=True)
class Config:
    """Settings of depth pruning.

    Args:
        cuts: (A, B) pairs, positions in the model's list of cut points: the layers between are
            deleted. Disjoint and increasing.
        translator: "identity", "linear", "pooled" (with a ReLU, as published) or "residual".
        refine_steps: steps of local training after the closed-form fit.
        freeze: "backbone" trains translators and a new head only, to the end of the trial, as in
            transfer learning; batch norms go on following their inputs' statistics.
        head_width: hidden width of a new head in place of all layers after the last cut point; 0
            keeps the model's own.
        calibration: training inputs that translators are fitted on, fewer where their tensors are large.
        ridge: strength of the ridge penalty, relative to the features' mean square.
    """

    cuts: tuple[tuple[int, int], ...] = ((0, 1),)
    translator: Kind = "linear"
    refine_steps: int = 0
    freeze: Freeze = "none"
    head_width: int = 0
    calibration: int = 256
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        # From a JSON file the pairs come as lists.
        object.__setattr__(self, "cuts", tuple((int(a), int(b)) for a, b in self.cuts))
        ends = [end for pair in self.cuts for end in pair]
        if any(a >= b for a, b in self.cuts) or ends != sorted(ends) or (ends and ends[0] < 0):
            raise SettingsError(f"cuts must be disjoint, increasing pairs A < B but got {self.cuts}.")
        if self.translator not in KINDS:
            raise SettingsError(f"translator must be one of {', '.join(KINDS)} but got {self.translator!r}.")
        if self.freeze not in ("none", "backbone"):
            raise SettingsError(f"freeze must be 'none' or 'backbone' but got {self.freeze!r}.")
        if self.freeze == "backbone" and self.translator == "identity" and not self.head_width:
            raise SettingsError("freeze must be 'none' where nothing else could be trained.")
        for name in ("refine_steps", "head_width", "ridge"):
            at_least_0(name, getattr(self, name))
        if self.calibration < 2:
            raise SettingsError(f"calibration must be at least 2 but got {self.calibration}.")


class Head(nn.Module):
    """A new top: global average pooling → hidden layer → outputs; `(B, ...)` → `(B, classes)`."""

    def __init__(self, start: CutPoint, width: int, classes: int) -> None:
        super().__init__()
        channels = start.shape[-1 if start.tokens else 0]
        self.pool = Translator(start.shape, (channels,), "identity", start.tokens)
        self.hidden, self.last = nn.Linear(channels, width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(torch.relu(self.hidden(self.pool(x))))
        return outputs


@dataclass
class DepthState(CompressorState):
    """The bridged model, its bridges with the layers between, each translator's relative error, and the
    share of the MACs that is left."""

    bridges: list[tuple[Bridge, tuple[str, ...]]] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    share: float = 1.0


class Depth(Compressor[DepthState]):
    """Depth pruning by bridging pairs of cut points with translators fitted in closed form."""

    Config: ClassVar[type[Config]] = Config
    level: ClassVar[int] = 0

    @classmethod
    def unsupported(cls, profile: ModelProfile) -> str | None:
        legal = any(cut.partners for cut in profile.cut_points)
        return None if legal else "the model has no two cut points that a translator can bridge"

    def attach(self, model: nn.Module, task: Task) -> DepthState:
        like = next(p for p in model.parameters() if p.is_floating_point())
        device = like.device
        analysis = analyse(model, task.example())
        check_graph(model, bridge(model, analysis, []), task.example().to(device))
        inputs = torch.cat(task.calibration(self.config.calibration))[: self.config.calibration]
        state = DepthState(model)
        for a, b in self.config.cuts:
            start, end = self._ends(analysis, a, b)
            kind = self.config.translator
            translator = Translator(start.shape, end.shape, kind, start.tokens).to(like)
            name = _free(model, f"{_PREFIX}{a}_{b}")
            most = max(16, _MOST_ELEMENTS // max(math.prod(start.shape), math.prod(end.shape)))
            bridges = [one for one, _ in state.bridges]
            ends, part = (start.node, end.node), inputs[:most].to(device)
            tensors = _activations(model, analysis, bridges, ends, part)
            state.errors[name] = fit(translator, *tensors, self.config.ridge)
            if self.config.refine_steps:
                state.errors[name] = refine(translator, *tensors, self.config.refine_steps)
            self._add(state, analysis, Bridge(start.node, end.node, name, translator))
        if self.config.head_width:
            self._add(state, analysis, self._head(model, analysis, task, like))
        state.model = bridge(model, analysis, [one for one, _ in state.bridges])
        left, whole = (layer_macs(one, task.example().to(device))[""] for one in (state.model, model))
        state.share = left / max(1, whole)
        if self.config.freeze == "backbone":
            self._freeze(state)
        return state

    def after_epoch(self, state: DepthState, progress: float) -> Mapping[str, float]:
        errors = {f"translator_error/{name}": error for name, error in state.errors.items()}
        return errors | {"ratio/macs": state.share}

    def plan(self, state: DepthState) -> Plan:
        """Each bridge, and of the layers between its ends those that nothing else uses."""
        graph: Any = state.model.graph
        used = used_layers(graph)
        return tuple(
            DropBlock(one.start, one.end, one.name, tuple(layer for layer in layers if layer not in used))
            for one, layers in state.bridges
        )

    def release(self, state: DepthState) -> nn.Module:
        return state.model

    def _ends(self, analysis: Analysis, a: int, b: int) -> tuple[CutPoint, CutPoint]:
        cuts = analysis.cut_points
        if b >= len(cuts):
            raise TrialError(f"cuts must be below the model's {len(cuts)} cut points but got {b}.")
        reason = why_illegal(cuts[a], cuts[b])
        if reason is not None:
            raise TrialError(f"cuts ({a}, {b}) cannot be bridged: {reason}.")
        return cuts[a], cuts[b]

    def _add(self, state: DepthState, analysis: Analysis, new: Bridge) -> None:
        state.bridges.append((new, layers_between(analysis, new.start, new.end)))

    def _head(self, model: nn.Module, analysis: Analysis, task: Task, like: Tensor) -> Bridge:
        last = analysis.cut_points[-1]
        with torch.no_grad():
            classes = model.eval()(task.example().to(like.device)).shape[1:]
        if len(classes) != 1:
            raise TrialError(f"head_width must be 0 where outputs are not (B, classes) but {classes}.")
        head = Head(last, self.config.head_width, int(classes[0])).to(like)
        return Bridge(last.node, OUTPUT, _free(model, _HEAD), head)

    def _freeze(self, state: DepthState) -> None:
        """Train the bridges alone, to the end of the trial."""
        own = {one.name for one, _ in state.bridges}
        for name, parameter in state.model.named_parameters():
            parameter.requires_grad_(name.partition(".")[0] in own)


def _free(model: nn.Module, name: str) -> str:
    """A name that nothing in the model has; it may have been bridged before."""
    while hasattr(model, name):
        name += "_"
    return name


def _activations(
    model: nn.Module, analysis: Analysis, bridges: list[Bridge], ends: tuple[str, str], inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """The earlier tensor as the bridged model makes it, and the later one as the whole model does."""
    start, end = ends
    # Where an earlier bridge ends at this cut point, its translator makes the tensor.
    start = next((one.name for one in bridges if one.end == start), start)
    bridged = bridge(model, analysis, bridges)
    whole = bridge(model, analysis, [])
    found: list[Tensor] = []
    with torch.no_grad(), plain_attention():
        for module, name in ((bridged, start), (whole, end)):
            tapped = tap(module, module.graph, [name]).eval()
            found.append(torch.cat([tapped(part)[0] for part in torch.split(inputs, 128)]))
    return found[0], found[1]
