"""Which share of a model each kind of change can reach, and why not the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from autocompress.graph.structure import Analysis
from autocompress.task import CutProfile, ModelProfile

_VECTORS = "it is in vectors: biases, normalisations"


@dataclass(frozen=True)
class Reach:
    """Which share of a model a method can make smaller.

    Args:
        params: of its parameters, in [0, 1].
        macs: of its multiply-accumulates for one input, in [0, 1].
        why_not: reason → share of the parameters that the method leaves for it.
    """

    params: float
    macs: float
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
    channels = (
        1 - sum(term.params for term in fixed) / params if profile.cost_terms else 0.0,
        1 - sum(term.macs for term in fixed) / macs if profile.cost_terms else 0.0,
    )
    factors = [layer for layer in profile.layers if layer.factorable or layer.product]
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
    return {
        "alcn": _reach(channels, _left_alone(model, analysis, params)),
        "depth": _reach(_deepest(profile.cut_points, params, macs), {}),
        "autoplastic": _reach(
            (
                max(channels[0], within_branches),
                max(channels[1], sum(multiplied.get(name, 0) for name in branches) / macs),
            ),
            {},
        ),
        "alds": _reach(
            (
                sum(layer.params for layer in factors) / params,
                sum(layer.macs for layer in factors if layer.factorable) / macs,
            ),
            {**vectors, **staying, **plain},
        ),
        # What is stored in fewer bytes is multiplied as before.
        "lc": _reach((weights / params, 0.0), {**vectors, **staying}),
    }


def _reach(shares: tuple[float, float], why_not: Mapping[str, float]) -> Reach:
    params, macs = (min(max(share, 0.0), 1.0) for share in shares)
    return Reach(params, macs, {reason: share for reason, share in why_not.items() if share > 0})


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
