"""Parameters and multiply-accumulates of a model, per layer and per channel group."""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from autocompress.graph.branch_gate import BranchGate
from autocompress.graph.counting import counting
from autocompress.graph.exporting import plain_attention
from autocompress.graph.limits import CutPairs
from autocompress.graph.structure import Analysis
from autocompress.graph.tracing import shape_of
from autocompress.graph.weights import Weight, staying_weights, weights_of
from autocompress.task import (
    CostTerm,
    CutProfile,
    GroupProfile,
    Inputs,
    LayerProfile,
    ModelProfile,
    call,
    moved,
)
from autocompress.task.inputs import leaves, take
from autocompress.weights.encoded import codes_of


def layer_macs(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Multiply-accumulates of one input through each module; "" is the whole model.

    Counted by PyTorch's own `FlopCounterMode` on meta tensors, attention's fast path off. Decoding a weight
    is none of them: an encoded layer multiplies as its dense one does.
    """
    with plain_attention():
        try:
            counter = _count(copy.deepcopy(model).to("meta"), moved(take(example, slice(1)), "meta"))
        except (RuntimeError, NotImplementedError):
            # Models that hold tensors besides parameters and buffers cannot move to the meta device.
            counter = _count(copy.deepcopy(model), _near(model, example))
    counts: dict[str, int] = defaultdict(int)
    for name, operators in counter.get_flop_counts().items():
        # Names begin with the root's class, which a copy of a graph module does not keep.
        module = name.partition(".")[2]
        if module or name == "Global":
            counts[module] = sum(operators.values()) // 2
    return counts


def _count(subject: nn.Module, example: Inputs) -> FlopCounterMode:
    """Run a model, which becomes useless for anything else, and count."""
    with torch.no_grad():
        for code in codes_of(subject).values():
            code.__dict__["forward"] = partial(torch.clone, code())
    with counting() as counter:
        call(subject.eval(), example)
    return counter


class _NodeCounter(fx.Interpreter):
    """Runs a graph while a counter counts, and reads it after each node."""

    def __init__(self, module: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__(module)
        self.counter, self.counted = counter, 0
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        before, self.counted = self.counted, self.counter.get_total_flops()
        self.macs[n.name] = (self.counted - before) // 2
        return result


def node_macs(model: nn.Module, example: Inputs, analysis: Analysis) -> dict[str, int]:
    """Multiply-accumulates of one input at each node of the model's graph, in order."""
    module, inputs = analysis.trace.module(model), leaves(_near(model, example))
    with counting() as counter:
        interpreter = _NodeCounter(module, counter)
        interpreter.run(*inputs, enable_io_processing=False)
    return interpreter.macs


def _near(model: nn.Module, example: Inputs) -> Inputs:
    """One input, where the model is."""
    parameter = next(model.parameters(), None)
    single: Inputs = take(example, slice(1))
    return single if parameter is None else moved(single, parameter.device)


def count_params(model: nn.Module) -> int:
    """Number of parameters, shared ones once; an encoded weight counts as what it stands for."""
    codes = codes_of(model).values()
    inside = {id(p) for code in codes for p in code.parameters()}
    plain = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    return plain + sum(code.numbers for code in codes)


def profile(
    model: nn.Module, example: Inputs, analysis: Analysis, macs: Mapping[str, int] | None = None
) -> ModelProfile:
    """What a search space may know of the model.

    Args:
        model: to describe.
        example: `(B, ...)`.
        analysis: of it.
        macs: of its layers, where they are counted already.
    """
    macs = layer_macs(model, example) if macs is None else macs
    groups = group_profiles(model, analysis, macs)
    pairs = CutPairs(analysis)
    weights = weights_of(model, analysis, macs)
    layers = tuple(_layer_profile(weight, analysis) for weight in weights)
    staying = staying_weights(model, analysis, macs)
    return ModelProfile(
        params=count_params(model),
        macs=macs.get("", 0),
        groups=groups,
        cut_points=_cut_profiles(model, example, analysis, pairs),
        layers=layers,
        outputs=_output_shape(analysis),
        staying_params=round(sum(w.params for w in staying) + sum(w.params * w.least for w in layers)),
        staying_macs=round(sum(w.macs for w in staying) + sum(w.macs * w.least for w in layers)),
        new_head=bool(pairs.cuts) and pairs.why_illegal(len(pairs.cuts) - 1, None) is None,
        mixing_blocks=sum(isinstance(m, BranchGate) and m.complement for m in model.modules()),
        cost_terms=cost_terms(model, analysis, macs),
    )


def group_profiles(model: nn.Module, analysis: Analysis, macs: Mapping[str, int]) -> tuple[GroupProfile, ...]:
    """What the units of each channel group cost, by the layers that they run through."""
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
    sizes = _weight_sizes(model)
    profiles = []
    for group in analysis.groups:
        beside: dict[str, float] = defaultdict(lambda: 1.0)
        for member in group.members:
            beside[member.tensor] *= 1 - float((member.unit_of >= 0).mean())
        params = multiplied = 0.0
        for tensor in [name for name in beside if name in shapes]:
            layer, numel = tensor.rpartition(".")[0], (1 - beside[tensor]) * shapes[tensor].numel()
            params += numel
            if len(shapes[tensor]) > 1:
                multiplied += macs.get(layer, 0) * numel / sizes[layer]
        profiles.append(
            GroupProfile(group.name, group.width, round(params), round(multiplied), least=group.least)
        )
    return tuple(profiles)


def _weight_sizes(model: nn.Module) -> dict[str, int]:
    """Numbers in the weights of each module, by which these share its multiply-accumulates."""
    sizes: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        sizes[name.rpartition(".")[0]] += parameter.numel() if parameter.dim() > 1 else 0
    return sizes


def _layer_profile(weight: Weight, analysis: Analysis) -> LayerProfile:
    # A unit of rank costs a row and a column of the weight, folded to f × (c · k₁ · k₂).
    rows, columns = weight.folded[0], math.prod(weight.folded[1:])
    rank_one = min(1.0, (rows + columns) / weight.params)
    least = 0.0
    if analysis.limits.share(weight.layer):
        ranks = analysis.limits.least_rank(weight.parameter, weight.shape, min(rows, columns))
        least = min(1.0, ranks * (rows + columns) / weight.params)
    return LayerProfile(
        weight.name,
        weight.kind,
        weight.params,
        weight.macs,
        factorable=weight.obstacle is None and least < 1,
        product=weight.groups == 1 and least < 1,
        least=least,
        rank_one=rank_one,
    )


def cost_terms(model: nn.Module, analysis: Analysis, macs: Mapping[str, int]) -> tuple[CostTerm, ...]:
    """The model's cost by the groups that its parts shrink with.

    Each dimension of a weight shrinks with the groups whose units stand along it, as far as they do; the MACs
    of a layer are shared out over its weights by their sizes.
    """
    factors: dict[str, dict[int, dict[int | None, float]]] = defaultdict(dict)
    for position, group in enumerate(analysis.groups):
        for member in group.members:
            along = factors[member.tensor].setdefault(member.dim, {None: 1.0})
            share = float((member.unit_of >= 0).mean())
            along[position] = along.get(position, 0.0) + share
            along[None] = (along[None] or 0.0) - share
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    weights = _weight_sizes(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    terms: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for parameter, own in names.items():
        multiplies = parameter.dim() > 1 and parameter.numel() > 0
        layers = [name.rpartition(".")[0] for name in own] if multiplies else []
        multiplied = sum(macs.get(layer, 0) * parameter.numel() / weights[layer] for layer in layers)
        # By whichever of its names the groups know a shared parameter.
        dims = next((factors[name] for name in own if name in factors), {})
        for parts in itertools.product(*(along.items() for along in dims.values())):
            groups = tuple(sorted(position for position, _ in parts if position is not None))
            part = math.prod(share for _, share in parts)
            terms[groups][0] += part * parameter.numel()
            terms[groups][1] += part * multiplied
    # What no weight stands for, as attention's own products, shrinks with none.
    terms[()][0] += count_params(model) - sum(params for params, _ in terms.values())
    terms[()][1] += macs.get("", 0) - sum(of_layers for _, of_layers in terms.values())
    kept = {groups: cost for groups, cost in terms.items() if any(abs(value) > 1e-6 for value in cost)}
    return tuple(CostTerm(groups, *cost) for groups, cost in sorted(kept.items()))


def _output_shape(analysis: Analysis) -> tuple[int, ...]:
    made = list(analysis.trace.graph.nodes)[-1].all_input_nodes
    return shape_of(made[0])[1:] if len(made) == 1 else ()


def _cut_profiles(
    model: nn.Module, example: Inputs, analysis: Analysis, pairs: CutPairs
) -> tuple[CutProfile, ...]:
    counts = node_macs(model, example, analysis)
    before = dict(zip(counts, itertools.accumulate(counts.values()), strict=True))
    cuts, profiles = analysis.cut_points, []
    for position, cut in enumerate(cuts):
        later = range(position + 1, len(cuts))
        partners = tuple(end for end in later if pairs.why_illegal(position, end) is None)
        layers = [model.get_submodule(name).parameters(recurse=False) for name in cut.layers]
        params = sum(p.numel() for layer in layers for p in layer)
        profiles.append(CutProfile(cut.name, cut.shape, params, before[cut.node], partners))
    return tuple(profiles)
