"""`analyse`: coupled channel groups of any exportable model, and a reason for all that is frozen."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import TraceError, one_line
from autocompress.graph import layer_rules, shape_rules  # noqa: F401  (they register the rules)
from autocompress.graph.labels import UNTRACKED, Ids
from autocompress.graph.tracing import Tracer, export_static

Role = Literal["out", "in", "channel"]


@dataclass(frozen=True)
class Member:
    """One dimension of one tensor that shrinks with a group.

    Args:
        tensor: state-dict name of the parameter or buffer.
        dim: the dimension that shrinks.
        role: "out" (makes the channels), "in" (reads them) or "channel" (both, as a norm does).
        unit_of: for each position of the dimension its unit in the group, or −1; `(size,)`.
        normalised: the layer's output goes to a batch normalisation of the group and nowhere else.
        whole_groups: the convolution's groups are removed whole; their number, else 0.
    """

    tensor: str
    dim: int
    role: Role
    unit_of: NDArray[np.int64]
    normalised: bool = False
    whole_groups: int = 0

    @property
    def layer(self) -> str:
        """Name of the module that owns the tensor."""
        return self.tensor.rpartition(".")[0]

    def positions(self, units: Iterable[int]) -> NDArray[np.int64]:
        """Positions of the dimension that belong to these units."""
        return np.flatnonzero(np.isin(self.unit_of, list(units)))


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, unit by unit, from all its members."""

    name: str
    width: int
    members: tuple[Member, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.layer for member in self.members))


@dataclass(frozen=True)
class Analysis:
    """What may be removed from a model, and why the rest may not.

    Args:
        groups: coupled channel groups, from input to output.
        frozen: layer name → why none of its output channels can be removed.
        layers: all layers that own parameters.
    """

    groups: tuple[Group, ...]
    frozen: dict[str, str]
    layers: tuple[str, ...]

    def group(self, name: str) -> Group:
        """The group of that name; `KeyError` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


_CACHE: OrderedDict[str, Analysis] = OrderedDict()
_CACHE_SIZE = 64


def analyse(model: nn.Module, example: Tensor) -> Analysis:
    """Find a model's coupled channel groups on its exported graph, each proven by a trial removal.

    Args:
        model: any module that `torch.export` can trace; it is not changed.
        example: a batch of at least 2 inputs, `(B, ...)`.

    Raises:
        TraceError: `torch.export` cannot trace the model.
    """
    from autocompress.graph.proof import prove_groups

    try:
        subject = copy.deepcopy(model).to("cpu").eval()
    except RuntimeError as error:
        raise TraceError(f"the model must be copyable but: {one_line(error)}") from error
    inputs = example.to("cpu")
    program = export_static(subject, inputs)
    # The graph itself is the key: models of one class may differ by a flag that no shape shows.
    shapes = [(name, tuple(t.shape)) for name, t in subject.state_dict().items()]
    key = f"{program.graph_signature}|{program.graph}|{shapes}|{subject}"
    if key not in _CACHE:
        tracer = Tracer()
        tracer.run(program)
        _CACHE[key] = prove_groups(subject, inputs, _build(subject, tracer))
        if len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    return _CACHE[key]


def _build(model: nn.Module, tracer: Tracer) -> Analysis:
    roots = tracer.units.roots()
    reasons: dict[int, str] = {}
    for ids, reason in tracer.units.frozen:
        for root in np.unique(roots[ids]).tolist():
            reasons.setdefault(root, reason)
    groups = _free_groups(tracer, roots, reasons)
    return Analysis(groups, _frozen_layers(model, tracer, roots, reasons, groups), _layers(model))


def _free_groups(tracer: Tracer, roots: Ids, reasons: dict[int, str]) -> tuple[Group, ...]:
    """Free units that run through the same tensor dimensions form one group."""
    places: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for key, ids in tracer.axes.items():
        for root in np.unique(roots[ids]).tolist():
            if root not in reasons:
                places[root].append(key)
    by_signature: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for root, place in places.items():
        by_signature[tuple(place)].append(root)
    groups = []
    for keys, units in by_signature.items():
        roles = {tracer.roles[key] for key in keys}
        if not roles & {"out", "channel"} or not roles & {"in", "channel"}:
            continue
        unit_index = np.full(int(roots.max()) + 1, UNTRACKED, dtype=np.int64)
        unit_index[units] = np.arange(len(units))
        members = tuple(_member(tracer, key, unit_index[roots[tracer.axes[key]]]) for key in keys)
        makers = [m for m in members if m.role != "in"]
        groups.append(Group(makers[0].layer or makers[0].tensor, len(units), members))
    return _with_unique_names(groups)


def _member(tracer: Tracer, key: tuple[str, int], unit_of: Ids) -> Member:
    tensor, dim = key
    role = tracer.roles[key]
    whole = tracer.whole_groups.get(tensor, 0) if dim == 0 else 0
    return Member(tensor, dim, role, unit_of, tensor in tracer.normalised, whole)  # type: ignore[arg-type]


def _with_unique_names(groups: list[Group]) -> tuple[Group, ...]:
    seen: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        count = seen[group.name]
        seen[group.name] += 1
        named.append(replace(group, name=f"{group.name}#{count + 1}") if count else group)
    return tuple(named)


def _layers(model: nn.Module) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def _frozen_layers(
    model: nn.Module,
    tracer: Tracer,
    roots: Ids,
    reasons: dict[int, str],
    groups: tuple[Group, ...],
) -> dict[str, str]:
    """A reason for each layer whose output channels are in no group."""
    free = {m.layer for group in groups for m in group.members if m.role != "in"}
    frozen: dict[str, str] = {}
    for layer in _layers(model):
        if layer in free:
            continue
        found = [
            reasons[root]
            for (tensor, dim), ids in tracer.axes.items()
            if tensor.rpartition(".")[0] == layer and tracer.roles[tensor, dim] != "in"
            for root in roots[ids].tolist()
            if root in reasons
        ]
        frozen[layer] = found[0] if found else "no operator that is analysed uses its parameters"
    return frozen
