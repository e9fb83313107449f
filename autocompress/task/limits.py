"""What of a model methods leave alone, and how much of a layer they leave, by names of modules and tensors.

Users name layers by patterns, which are looked up once, on the model that a search or `compress` begins with.
Surgery keeps the names of all that it leaves, so that what was found holds for every model made of that one.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from torch import Tensor, nn

from autocompress.errors import SettingsError, TaskError

_FROZEN = "its parameters are frozen (requires_grad=False)"


@dataclass(frozen=True)
class Limits:
    """What methods may not change of a model.

    Args:
        modules: name of a module → why neither it nor what is inside of it is changed.
        tensors: name of a parameter or buffer → why it is not changed.
        at_least: name of a layer → least share of its units that stays, in (0, 1].
        shapes: name of each tensor of these layers → its shape in the model that the share is of.
        steady: names of normalisations whose statistics stay as they are.
        excluded: names of the modules and tensors that were excluded by name, and are not only frozen.
        whole: name of a layer → why all of its units stay; its weight may be stored otherwise.
    """

    modules: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    steady: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    whole: Mapping[str, str] = field(default_factory=dict)

    def joined(self, others: Limits) -> Limits:
        """These limits and those of the model that this one was prepared from, some of whose names it has."""
        return Limits(
            {**others.modules, **self.modules},
            {**others.tensors, **self.tensors},
            {**others.at_least, **self.at_least},
            {**others.shapes, **self.shapes},
            self.steady | others.steady,
        )

    def why_tensor(self, name: str) -> str | None:
        """Why a parameter or buffer stays as it is; None where it need not."""
        return self.tensors.get(name) or self._why_inside(name)

    def why_layer(self, name: str) -> str | None:
        """Why a layer, or a tensor of its own, stays as it is; None where it need not."""
        own = (reason for tensor, reason in self.tensors.items() if owner_of(tensor) == name)
        return self._why_inside(name) or next(own, None)

    def why_whole(self, layer: str) -> str | None:
        """Why all units of a layer stay, or of what stands in its place; None where some may go."""
        return next((self.whole[name] for name in _enclosing(layer) if name in self.whole), None)

    def why_there(self, name: str) -> str | None:
        """Why a layer may not be deleted; None where it may."""
        return self.why_layer(name) or self.why_part(name)

    def why_part(self, layer: str) -> str | None:
        """Why a part of a layer stays; None where none need."""
        share = self.share(layer)
        return f"at least {share:g} of it must stay" if share else None

    def excludes(self, name: str) -> bool:
        """Whether a module or tensor, or a module around it, was excluded by name."""
        return not self.excluded.isdisjoint((*_enclosing(name), ""))

    def share(self, layer: str) -> float:
        """The least share of a layer's units that stays, in [0, 1]; the same of what stands in its place."""
        return max((self.at_least.get(name, 0.0) for name in _enclosing(layer)), default=0.0)

    def least_units(self, tensor: str, dim: int, size: int, units: int) -> int:
        """How many of some of a layer's units must stay, one at least.

        Args:
            tensor: name of a parameter or buffer of the layer.
            dim: the dimension that its units stand along.
            size: of it now.
            units: how many of them there are now.
        """
        shape = self.shapes.get(tensor)
        return self._part(owner_of(tensor), units, None if shape is None else shape[dim] / size)

    def least_rank(self, parameter: str, shape: tuple[int, ...], full: int) -> int:
        """The least rank of a weight, one at least.

        Args:
            parameter: its name.
            shape: of it now.
            full: the rank at which nothing is lost, as the weight is folded.
        """
        before = self.shapes.get(parameter)
        shrunk = None if before is None else _full_rank(before) / _full_rank(shape)
        return self._part(owner_of(parameter), full, shrunk)

    def _part(self, layer: str, count: int, shrunk: float | None) -> int:
        """The layer's share of what is left of its units, rounded up, from one to all.

        Args:
            layer: its name.
            count: of the units that are left.
            shrunk: how many there were for each that is left; None where these are no units of the layer
                itself but of what stands in its place, as of two factors: all of them stay.
        """
        share = self.share(layer)
        if not share:
            return min(1, count)
        # Less what rounding may have added, so that a half of 12 is not 7.
        return count if shrunk is None else min(count, max(1, math.ceil(share * shrunk * count - 1e-6)))

    def _why_inside(self, name: str) -> str | None:
        around = (outer for outer in (*_enclosing(name), "") if outer in self.modules)
        return next((self.modules[outer] for outer in around), None)


def owner_of(tensor: str) -> str:
    """Name of the module that owns a tensor."""
    return tensor.rpartition(".")[0]


def _enclosing(name: str) -> Iterator[str]:
    """A name and those of the modules around it, but for the model's own, the innermost first."""
    yield name
    while "." in name:
        name = owner_of(name)
        yield name


def _full_rank(shape: tuple[int, ...]) -> int:
    """Of a weight that is folded to f × (c · k₁ · k₂)."""
    return max(1, min(shape[0], math.prod(shape[1:])))


def check_limits(exclude: object, at_least: object) -> None:
    """Refuse what no limits can be made of, before there is a model.

    Raises:
        SettingsError: patterns are no strings, or shares are not in [0, 1].
    """
    if not isinstance(exclude, (tuple, list)) or not all(isinstance(pattern, str) for pattern in exclude):
        raise SettingsError(f"exclude must be a list of names, patterns or classes but got {exclude!r}.")
    if not isinstance(at_least, Mapping) or not all(isinstance(pattern, str) for pattern in at_least):
        raise SettingsError(f"at_least must map names, patterns or classes to shares but got {at_least!r}.")
    for pattern, share in at_least.items():
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not number or not 0 <= share <= 1:
            raise SettingsError(f"at_least must be in [0, 1] but got {share!r} for {pattern!r}.")


def settle(
    model: nn.Module, exclude: Iterable[str] = (), at_least: Mapping[str, float] | None = None
) -> Limits:
    """The limits of a model and of all that is made of it.

    A pattern is the name of a module, with all inside of it, or of a tensor; a glob of such names, as
    "layer1.*"; or the name of a class or of one that it is derived from, as "Conv2d". What is frozen, and
    what shares a tensor with what stays as it is, stays too.

    Args:
        model: as the task makes it, in the mode in which it is made; not changed.
        exclude: patterns of what stays as it is.
        at_least: pattern → least share of the units of its layers that stays; where several name a layer, the
            largest counts.

    Raises:
        SettingsError: a pattern names nothing that holds a parameter or a buffer.
    """
    names = _Names(model)
    modules: dict[str, str] = {}
    tensors: dict[str, str] = {}
    for pattern in exclude:
        reason = f"excluded by {pattern!r}"
        named_modules, named_tensors = names.named(pattern, "exclude")
        modules = {**dict.fromkeys(named_modules, reason), **modules}
        tensors = {**dict.fromkeys(named_tensors, reason), **tensors}
    tensors |= names.shared_with(Limits(modules, tensors))
    excluded = frozenset(modules) | frozenset(tensors)
    frozen_modules, frozen_tensors = names.frozen()
    shares = names.shares(at_least or {})
    return Limits(
        {**dict.fromkeys(frozen_modules, _FROZEN), **modules},
        {**dict.fromkeys(frozen_tensors, _FROZEN), **tensors},
        shares,
        {name: tuple(t.shape) for name, t in names.tensors.items() if owner_of(name) in shares},
        frozenset(_steady(model)),
        excluded,
    )


class _Names:
    """The names of a model's modules and tensors, those of one that goes by several each."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = {
            **self.parameters,
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        self.holders = {outer for name in self.tensors for outer in (*_enclosing(owner_of(name)), "")}

    def named(self, pattern: str, setting: str) -> tuple[list[str], list[str]]:
        """The modules that a pattern names and that hold tensors, and the tensors that it names."""
        modules = [name for name, module in self.modules.items() if _suits(pattern, name, module)]
        tensors = [name for name in self.tensors if fnmatch.fnmatchcase(name, pattern)]
        holding = [name for name in modules if name in self.holders]
        if not holding and not tensors:
            raise SettingsError(
                f"{setting} must name layers of the model but {self._remedy(pattern, modules)}."
            )
        return holding, tensors

    def _remedy(self, pattern: str, modules: list[str]) -> str:
        if modules:
            return f"{pattern!r} names none that has a parameter or a buffer"
        classes = {cls for name in self.holders for cls in _classes(self.modules[name])}
        known = sorted({*self.holders, *(cls for cls in classes if not cls.startswith("_"))} - {""})
        nearest = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
        return f"{pattern!r} names none (did you mean {' or '.join(map(repr, nearest))}?)"

    def shares(self, at_least: Mapping[str, float]) -> dict[str, float]:
        """The share of each layer, and of each that shares a tensor with one."""
        shares: dict[str, float] = {}
        for pattern, share in at_least.items():
            modules, tensors = self.named(pattern, "at_least")
            inside = [name for name in self.tensors if {*_enclosing(name), ""} & set(modules)]
            held = {id(self.tensors[name]) for name in chain(inside, tensors)}
            for layer in {owner_of(name) for name, tensor in self.tensors.items() if id(tensor) in held}:
                shares[layer] = max(shares.get(layer, 0.0), float(share))
        return {layer: share for layer, share in shares.items() if share}

    def frozen(self) -> tuple[list[str], list[str]]:
        """Modules all of whose parameters are frozen, and the frozen parameters of others."""
        frozen = {
            name for name, p in self.parameters.items() if p.is_floating_point() and not p.requires_grad
        }
        trained = {outer for name in self.parameters.keys() - frozen for outer in _enclosing(name)}
        modules = {outer for name in frozen for outer in _enclosing(owner_of(name)) if outer} - trained
        return sorted(modules), sorted(n for n in frozen if not modules & set(_enclosing(n)))

    def shared_with(self, limits: Limits) -> dict[str, str]:
        """Tensors that go by another name as well, which stays as it is."""
        staying = {id(tensor): name for name, tensor in self.tensors.items() if limits.why_tensor(name)}
        return {
            name: f"it is shared with {staying[id(tensor)]!r}: {limits.why_tensor(staying[id(tensor)])}"
            for name, tensor in self.tensors.items()
            if id(tensor) in staying and limits.why_tensor(name) is None
        }


def _suits(pattern: str, name: str, module: nn.Module) -> bool:
    return (name != "" and fnmatch.fnmatchcase(name, pattern)) or pattern in _classes(module)


def _classes(module: nn.Module) -> list[str]:
    """Names of a module's class and of those that it is derived from."""
    lineage = type(module).__mro__
    return [cls.__name__ for cls in lineage if issubclass(cls, nn.Module) and cls is not nn.Module]


def _steady(model: nn.Module) -> list[str]:
    """Normalisations that are in evaluation while the model trains, or whose own parameters are frozen."""
    modes = {module: module.training for module in model.modules()}
    norms = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if getattr(module, "running_mean", None) is not None
    }
    # Where the whole model was made in evaluation, that says nothing of any of its layers.
    still = {name for name, norm in norms.items() if model.training and not norm.training}
    model.train()
    still |= {name for name, norm in norms.items() if not norm.training}
    for module, training in modes.items():
        module.training = training
    own = {name: list(norm.parameters(recurse=False)) for name, norm in norms.items()}
    return sorted(still | {name for name, ps in own.items() if ps and not any(p.requires_grad for p in ps)})


def check_something_left(model: nn.Module, limits: Limits) -> None:
    """Refuse a model of which nothing may be changed.

    Raises:
        TaskError: all of its parameters are frozen.
        SettingsError: all of those that are not are excluded.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    if not parameters:
        return
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if not trained:
        raise TaskError(
            f"the model must have a parameter that trains but all {len(parameters)} are frozen "
            "(requires_grad=False)."
        )
    if all(limits.why_tensor(name) is not None for name in trained):
        raise SettingsError(
            f"exclude must leave something to compress but names all {len(trained)} parameters that train."
        )
