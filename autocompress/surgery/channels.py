"""`KeepChannels`: units of coupled channel groups are cut out of every tensor that they run through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.errors import CheckpointError, TrialError
from autocompress.graph import Analysis, Keep, analyse
from autocompress.graph.analysis import with_present_constants
from autocompress.graph.masking import mask_channels
from autocompress.graph.proof import cut_modules
from autocompress.graph.removal import Cuts, cut_tensors, cuts_of
from autocompress.graph.rewriting import rewrite_channels
from autocompress.surgery.edits import Edit
from autocompress.task import Inputs


@dataclass(frozen=True)
class KeptPositions:
    """What stays of one dimension of one tensor.

    Args:
        tensor: state-dict name of a parameter or buffer.
        dim: the dimension.
        kept: positions that stay, as runs `(first, count)`.
    """

    tensor: str
    dim: int
    kept: tuple[tuple[int, int], ...]

    @staticmethod
    def of(tensor: str, dim: int, size: int, removed: Sequence[int]) -> KeptPositions:
        """Of a dimension of that size without some positions."""
        stays = np.ones(size, dtype=bool)
        stays[list(removed)] = False
        return KeptPositions._where(tensor, dim, stays)

    @staticmethod
    def _where(tensor: str, dim: int, stays: NDArray[np.bool_]) -> KeptPositions:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], stays.astype(np.int8), [0]])))
        runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        return KeptPositions(tensor, dim, tuple((first, end - first) for first, end in runs))

    @property
    def positions(self) -> NDArray[np.int64]:
        """Those that stay, in order."""
        runs = [np.arange(first, first + count) for first, count in self.kept]
        return np.concatenate(runs) if runs else np.zeros(0, dtype=np.int64)

    def then(self, later: KeptPositions) -> KeptPositions:
        """What stays after both, `later` being of what this one leaves."""
        left = self.positions[later.positions]
        stays = np.zeros(int(left.max(initial=-1)) + 1, dtype=bool)
        stays[left] = True
        return KeptPositions._where(self.tensor, self.dim, stays)

    def removed(self, size: int) -> list[int]:
        """Positions of a dimension of that size that do not stay."""
        stays = np.zeros(size, dtype=bool)
        for first, count in self.kept:
            stays[first : first + count] = True
        removed: list[int] = np.flatnonzero(~stays).tolist()
        return removed


@dataclass(frozen=True)
class KeepChannels(Edit):
    """Keep some positions of dimensions of tensors.

    Args:
        kept: of every tensor that a unit runs through.
        groups: layer → number of groups that its convolution or normalisation is left with.
        rewritten: the model's own code fixes sizes that change, so its exported graph is cut, with its
            layers as modules and those constants corrected.
        sizes: module, attribute → what modules of the user's own classes say of their sizes.
    """

    kind: ClassVar[str] = "keep_channels"
    kept: tuple[KeptPositions, ...]
    groups: tuple[tuple[str, int], ...] = ()
    rewritten: bool = False
    sizes: tuple[tuple[str, str, int], ...] = ()

    def apply(self, model: nn.Module, example: Inputs) -> nn.Module:
        """Cut the tensors in place, or give a cut graph where sizes in the model's own code change.

        Raises:
            CheckpointError: the model lacks one of the tensors.
        """
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
            model.named_buffers(remove_duplicate=False)
        )
        missing = [entry.tensor for entry in self.kept if entry.tensor not in tensors]
        if missing:
            raise CheckpointError(f"edits must fit the model but it has no tensor {missing[0]!r}.")
        if self.rewritten:
            analysis = analyse(model, example)
            return rewrite_channels(model, analysis, self._keep(analysis, tensors))
        removed = {
            (entry.tensor, entry.dim): entry.removed(tensors[entry.tensor].shape[entry.dim])
            for entry in self.kept
        }
        sizes = {(module, attribute): size for module, attribute, size in self.sizes}
        cut_tensors(model, Cuts(removed, dict(self.groups), sizes))
        return model

    def then(self, later: Edit) -> Edit | None:
        """One cut for two in a row; None where one of them traces the model, as the other left it."""
        if not isinstance(later, KeepChannels) or self.rewritten or later.rewritten:
            return None
        kept = {(entry.tensor, entry.dim): entry for entry in self.kept}
        for entry in later.kept:
            before = kept.get((entry.tensor, entry.dim))
            kept[entry.tensor, entry.dim] = entry if before is None else before.then(entry)
        sizes = {entry[:2]: entry for entry in (*self.sizes, *later.sizes)}
        groups = {**dict(self.groups), **dict(later.groups)}
        return KeepChannels(tuple(kept.values()), tuple(groups.items()), sizes=tuple(sizes.values()))

    def _keep(self, analysis: Analysis, tensors: dict[str, Tensor]) -> Keep:
        """The units of each group that stay, by the positions of any tensor that they run through."""
        kept = {(entry.tensor, entry.dim): entry for entry in self.kept}
        keep: dict[str, list[int]] = {}
        for group in analysis.groups:
            for member in group.members:
                positions = kept.get((member.tensor, member.dim))
                if positions is not None:
                    gone = member.unit_of[positions.removed(tensors[member.tensor].shape[member.dim])]
                    keep[group.name] = sorted(set(range(group.width)) - set(gone.tolist()))
                    break
        return keep


@dataclass(frozen=True)
class Cut:
    """A compact model, the edits that lead to it, and the masked model that it must equal."""

    model: nn.Module
    edits: tuple[Edit, ...]
    masked: nn.Module


def keep_units(model: nn.Module, analysis: Analysis, keep: Keep, probe: Inputs) -> Cut:
    """Cut the units that are not kept out of a model's own modules, or its graph where its code resists.

    Args:
        model: not changed.
        analysis: of this model.
        keep: group name → units that stay; groups that are not named, or stay whole, are left alone.
        probe: inputs to compare the model with its masked form on, `(B, ...)`.

    Raises:
        TrialError: neither can be cut, or the model has no such group or unit.
    """
    _check(analysis, keep)
    keep = {name: units for name, units in keep.items() if len(units) < analysis.group(name).width}
    masked = mask_channels(model, analysis, keep).eval()
    if not keep:
        return Cut(model, (), masked)
    cuts = cuts_of(analysis, keep)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    kept = tuple(
        KeptPositions.of(tensor, dim, tensors[tensor].shape[dim], positions)
        for (tensor, dim), positions in cuts.removed.items()
    )
    own = cut_modules(model, cuts, masked, probe)
    sizes = own.cuts.sizes if own is not None else {}
    edit = KeepChannels(
        kept,
        tuple(cuts.groups.items()),
        rewritten=own is None,
        sizes=tuple((*place, size) for place, size in sizes.items()),
    )
    if own is not None:
        return Cut(own.model, (edit,), masked)
    smaller = rewrite_channels(model, with_present_constants(analysis, model, probe), keep)
    return Cut(smaller, (edit,), masked)


def groups_to_rewrite(model: nn.Module, analysis: Analysis, probe: Inputs) -> list[str]:
    """Names of the groups that cannot be cut in half within the model's own class.

    Args:
        model: not changed.
        analysis: of this model.
        probe: inputs to run the model on, `(B, ...)`.
    """
    rewritten = []
    for group in analysis.groups:
        keep = {group.name: list(range(-(-group.width // 2)))}
        cuts = cuts_of(analysis, keep)
        if cut_modules(model, cuts, mask_channels(model, analysis, keep).eval(), probe) is None:
            rewritten.append(group.name)
    return rewritten


def _check(analysis: Analysis, keep: Keep) -> None:
    widths = {group.name: group.width for group in analysis.groups}
    for name, units in keep.items():
        if name not in widths:
            raise TrialError(
                f"keep must name groups of the model ({', '.join(widths) or 'none'}) but names {name!r}."
            )
        beyond = [unit for unit in units if not 0 <= unit < widths[name]]
        if beyond:
            raise TrialError(
                f"units must be below the {widths[name]} units of group {name!r} but got {beyond[0]}."
            )
        if not units:
            raise TrialError(f"at least one unit of group {name!r} must stay but none does.")
