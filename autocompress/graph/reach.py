"""Which share of a model each kind of change can reach, and why not the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import nn

from autocompress.graph.structure import Analysis
from autocompress.graph.weights import weights_of
from autocompress.task import CutProfile, ModelProfile
from autocompress.task.limits import owner_of

_VECTORS = "it is in vectors: biases, normalisations"
_NOT_BETWEEN = "it lies between no two cut points that a module can bridge"
_NO_BRANCH = "it is in no branch beside a shortcut"


@dataclass(frozen=True)
class Reach:
    """Which share of a model a method can make smaller.

    Args:
        params: of its parameters, in [0, 1].
        macs: of its multiply-accumulates for one input, in [0, 1].
        bytes: of its tensors that it computes with, parameters or not, in [0, 1].
        why_not: reason → share of the parameters that the method leaves for it.
    """

    params: float
    macs: float
    bytes: float
    why_not: Mapping[str, float]


def reach(model: nn.Module, analysis: Analysis, profile: ModelProfile) -> dict[str, Reach]:
    """What each of the package's methods can reach of a model, by the method's name.

    ALCN shrinks what groups of channels run through; depth pruning deletes what lies between two cut points;
    Autoplastic closes channels and branches; ALDS factorises weights, and stores what is no layer's as a
    product; LC stores every weight as codes, sparse or of low rank.

    Args:
        model: not changed.
        analysis: of it, within limits.
        profile: of it.
    """
    params, macs = max(profile.params, 1), max(profile.macs, 1)
    fixed = [term for term in profile.cost_terms if not term.groups]
    held = _Bytes.of(model, analysis)
    channels = (
        1 - sum(term.params for term in fixed) / params if profile.cost_terms else 0.0,
        1 - sum(term.macs for term in fixed) / macs if profile.cost_terms and profile.macs else 0.0,
        held.channels(analysis),
    )
    factors = [layer for layer in profile.layers if layer.factorable or layer.product]
    parameters = {weight.name: weight.parameter for weight in weights_of(model, analysis, {})}
    branches = {name for residual in analysis.residuals for name in residual.branch}
    within_branches = sum(_own_params(model, name) for name in branches) / params
    multiplied = {layer.name: layer.macs for layer in profile.layers}
    weights = sum(layer.params for layer in profile.layers)
    vectors = {_VECTORS: (profile.params - weights - profile.staying_params) / params}
    staying = {"it is excluded or frozen": profile.staying_params / params}
    plain = {
        f"a {layer.kind} is neither factorised nor a product": layer.params / params
        for layer in profile.layers
        if layer not in factors
    }
    alone = _left_alone(model, analysis, params)
    deepest = _deepest(profile.cut_points, params, macs)
    return {
        "alcn": _reach(channels, alone),
        "depth": _reach((*deepest, held.depth(analysis, profile)), {_NOT_BETWEEN: 1 - deepest[0]}),
        "autoplastic": _reach(
            (
                max(channels[0], within_branches),
                max(channels[1], sum(multiplied.get(name, 0) for name in branches) / macs),
                max(channels[2], held.share_of_layers(branches)),
            ),
            alone if channels[0] >= within_branches else {_NO_BRANCH: 1 - within_branches},
        ),
        "alds": _reach(
            (
                sum(layer.params for layer in factors) / params,
                sum(layer.macs for layer in factors if layer.factorable) / macs,
                held.share(parameters[layer.name] for layer in factors),
            ),
            {**vectors, **staying, **plain},
        ),
        # What is stored in fewer bytes is multiplied as before.
        "lc": _reach((weights / params, 0.0, held.share(parameters.values())), {**vectors, **staying}),
    }


def _reach(shares: tuple[float, float, float], why_not: Mapping[str, float]) -> Reach:
    params, macs, of_bytes = (min(max(share, 0.0), 1.0) for share in shares)
    return Reach(params, macs, of_bytes, {reason: share for reason, share in why_not.items() if share > 0})


@dataclass(frozen=True)
class _Bytes:
    """Bytes of the tensors that a model's program has.

    Args:
        own: by name, shared tensors under the first of theirs.
        total: of them and of constants.
    """

    own: Mapping[str, int]
    total: int

    @staticmethod
    def of(model: nn.Module, analysis: Analysis) -> _Bytes:
        every = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        tensors = dict(chain(*every))
        nodes = (node for node in analysis.trace.graph.nodes if node.op == "get_attr" and node.users)
        read = {id(tensors[node.target]) for node in nodes if node.target in tensors}
        named = chain(model.named_parameters(), model.named_buffers())
        own = {name: tensor.nbytes for name, tensor in named if id(tensor) in read}
        constants = sum(constant.nbytes for constant in analysis.trace.constants.values())
        return _Bytes(own, max(1, sum(own.values()) + constants))

    def share(self, tensors: Iterable[str]) -> float:
        """Of some tensors, by name."""
        return sum(self.own.get(name, 0) for name in tensors) / self.total

    def share_of_layers(self, layers: Collection[str]) -> float:
        """Of the tensors that some layers own."""
        return self.share(name for name in self.own if owner_of(name) in layers)

    def channels(self, analysis: Analysis) -> float:
        """Of what the units of groups run through: along a dimension as far as they stand there."""
        along: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for group in analysis.groups:
            for member in group.members:
                along[member.tensor][member.dim] += float((member.unit_of >= 0).mean())
        reached = (
            self.own.get(tensor, 0) * (1 - math.prod(1 - share for share in shares.values()))
            for tensor, shares in along.items()
        )
        return sum(reached) / self.total

    def depth(self, analysis: Analysis, profile: ModelProfile) -> float:
        """The most that lies between two cut points that a translator bridges."""
        before = [self.share_of_layers(set(cut.layers)) for cut in analysis.cut_points]
        return max(
            (
                before[end] - before[start]
                for start, cut in enumerate(profile.cut_points)
                for end in cut.partners
            ),
            default=0.0,
        )


def _own_params(model: nn.Module, name: str) -> int:
    return sum(parameter.numel() for parameter in model.get_submodule(name).parameters(recurse=False))


def _left_alone(model: nn.Module, analysis: Analysis, params: int) -> dict[str, float]:
    """Reason → share of the parameters that layers own through which no group runs."""
    reached = {layer for group in analysis.groups for layer in group.layers}
    shares: dict[str, float] = defaultdict(float)
    for name, reason in analysis.frozen.items():
        if name not in reached:
            shares[reason] += _own_params(model, name) / params
    return shares


def _deepest(cuts: tuple[CutProfile, ...], params: int, macs: int) -> tuple[float, float]:
    """The most that lies between two cut points that a translator bridges."""
    spans = [
        ((cuts[end].params - start.params) / params, (cuts[end].macs - start.macs) / macs)
        for start in cuts
        for end in start.partners
    ]
    return max((span[0] for span in spans), default=0.0), max((span[1] for span in spans), default=0.0)
