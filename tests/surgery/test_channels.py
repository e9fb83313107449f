"""Units cut out of every tensor they run through: equal to the masked model, and the same again from data."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import CheckpointError, ProofError, TrialError
from autocompress.graph import analyse
from autocompress.graph.proof import random_keep, relative_difference
from autocompress.surgery import (
    KeepChannels,
    KeptPositions,
    apply,
    check_equal,
    edits_from_json,
    joined,
    keep_units,
)
from tests.graph.zoo import MODELS, UNet

KEEP = {"stem": [0, 3], "side": [1]}


class FixedSize(nn.Module):
    """Code that fixes a width, so that only its graph can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(192, 12), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x.flatten(1))).reshape(-1, 12, 1)
        return self.head((x.reshape(-1, 2, 6) * 0.5).sum(1))


def test_removed_channels_leave_outputs_unchanged(residual: nn.Module, images: Tensor) -> None:
    cut = keep_units(residual, analyse(residual, images), KEEP, images)
    assert check_equal(cut.model, cut.masked, images, "surgery") < 1e-5
    assert cut.model.head.in_features == 3 * 16
    dropped = [c for c in range(8) if c not in (0, 3)]
    with torch.no_grad():
        # Channels that are zero where they are made and read change nothing when they go.
        for tensor in (residual.branch.weight, residual.side.weight):
            tensor[:, dropped] = 0
        columns = residual.head.weight.view(5, 14, 16)
        columns[:, dropped] = 0
        columns[:, [8, 10, 11, 12, 13]] = 0
        assert torch.allclose(cut.model(images), residual(images), atol=1e-5)


@pytest.mark.parametrize("keep", [{}, {"stem": list(range(8))}])
def test_keeping_everything_changes_nothing(
    keep: dict[str, list[int]], residual: nn.Module, images: Tensor
) -> None:
    cut = keep_units(residual, analyse(residual, images), keep, images)
    assert cut.model is residual
    assert cut.edits == ()


def test_unknown_groups_and_units_are_refused(residual: nn.Module, images: Tensor) -> None:
    analysis = analyse(residual, images)
    with pytest.raises(
        TrialError, match=r"keep must name groups of the model \(.*stem.*\) but names 'nowhere'"
    ):
        keep_units(residual, analysis, {"nowhere": [0]}, images)
    with pytest.raises(TrialError, match="must be below the 6 units of group 'side' but got 6"):
        keep_units(residual, analysis, {"side": [0, 6]}, images)
    with pytest.raises(TrialError, match="at least one unit of group 'side' must stay but none does"):
        keep_units(residual, analysis, {"side": []}, images)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_edits_read_from_json_cut_a_fresh_copy_in_the_same_way(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    fresh = copy.deepcopy(model)
    analysis = analyse(model, images)
    keep = random_keep(analysis, [group.name for group in analysis.groups], seed=1)
    cut = keep_units(model, analysis, keep, images)
    assert cut.edits
    edits = edits_from_json(json.loads(json.dumps([edit.to_json() for edit in cut.edits])))
    assert edits == cut.edits
    again = apply(fresh, edits, images)
    assert again.state_dict().keys() == cut.model.state_dict().keys()
    # The tensors of a copy that was cut alike are the same, so that nothing need be loaded.
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), cut.model.parameters(), strict=True))
    assert check_equal(again, cut.masked, images, "surgery") < 1e-5


def test_code_that_fixes_sizes_is_cut_in_its_graph_with_its_layers_as_modules(images: Tensor) -> None:
    torch.manual_seed(0)
    model = FixedSize().eval()
    analysis = analyse(model, images)
    (group,) = analysis.groups
    cut = keep_units(model, analysis, {group.name: list(range(group.width // 2))}, images)
    (edit,) = cut.edits
    assert isinstance(edit, KeepChannels)
    assert edit.rewritten
    assert isinstance(cut.model.get_submodule("enter"), nn.Linear)
    again = apply(FixedSize().eval(), cut.edits, images)
    again.load_state_dict(cut.model.state_dict())
    with torch.no_grad():
        assert relative_difference(cut.masked(images), again(images)) < 1e-6


class Auxiliary(nn.Module):
    """A head that is there in training alone reads channels that the graph, of evaluation, says are free."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head, self.auxiliary = nn.Linear(192, 12), nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = torch.relu(self.enter(x.flatten(1)))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


def test_a_model_that_reads_more_in_training_still_trains(images: Tensor) -> None:
    model = Auxiliary().eval()
    cut = keep_units(model, analyse(model, images), {"enter": [0, 5]}, images)
    assert check_equal(cut.model, cut.masked, images, "surgery") < 1e-5
    assert cut.model.get_submodule("enter").out_features == 2
    assert cut.model.train()(images).shape == (len(images), 5)


def test_groups_of_normalisations_follow_their_channels(images: Tensor) -> None:
    torch.manual_seed(0)
    model = UNet().eval()
    analysis = analyse(model, images)
    keep = random_keep(analysis, [group.name for group in analysis.groups], seed=1)
    cut = keep_units(model, analysis, keep, images)
    again = apply(UNet().eval(), cut.edits, images)
    for name, layer in cut.model.named_modules():
        if isinstance(layer, nn.GroupNorm):
            assert again.get_submodule(name).num_groups == layer.num_groups
            assert again.get_submodule(name).num_channels == layer.num_channels


def test_edits_of_another_model_are_refused(residual: nn.Module, images: Tensor) -> None:
    cut = keep_units(residual, analyse(residual, images), KEEP, images)
    with pytest.raises(CheckpointError, match=r"edits must fit the model but it has no tensor '\w+\.\w+'"):
        apply(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), cut.edits, images)


def test_edits_of_unknown_kind_or_without_a_field_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"edit must be one of .*keep_channels.* but got 'fold'"):
        edits_from_json([{"edit": "fold"}])
    with pytest.raises(CheckpointError, match="edit 'keep_channels' is not readable"):
        edits_from_json([{"edit": "keep_channels"}])


@pytest.mark.parametrize("removed", [[], [0], [5], [1, 2, 4], [0, 1, 2, 3, 4, 5]])
def test_kept_positions_say_what_was_removed(removed: list[int]) -> None:
    assert KeptPositions.of("a.weight", 0, 6, removed).removed(6) == removed


def test_models_that_differ_are_not_called_equal(residual: nn.Module, images: Tensor) -> None:
    other = copy.deepcopy(residual)
    assert check_equal(residual, other, images, "nothing") == 0
    with torch.no_grad():
        other.head.bias[0] += 0.5
    with pytest.raises(ProofError, match=r"^surgery must leave outputs as they are to 0\.0001 but changes "):
        check_equal(residual, other, images, "surgery")
    other.train()
    with pytest.raises(ProofError):
        check_equal(residual, other, images, "surgery")


def test_two_cuts_in_a_row_are_one(residual: nn.Module, images: Tensor) -> None:
    analysis = analyse(residual, images)
    group = max(analysis.groups, key=lambda group: group.width)
    first = keep_units(copy.deepcopy(residual), analysis, {group.name: [0, 2, 3, 5, 6]}, images)
    between = analyse(first.model, images)
    same = next(other for other in between.groups if other.width == 5)
    other = next(other for other in between.groups if other is not same)
    second = keep_units(copy.deepcopy(first.model), between, {same.name: [1, 2, 4], other.name: [0]}, images)
    both = joined([*first.edits, *second.edits])
    assert len(both) == 1
    fresh = apply(copy.deepcopy(residual), both, images)
    fresh.load_state_dict(second.model.state_dict())
    assert torch.equal(fresh(images), second.model(images))
    directly = apply(copy.deepcopy(residual), [*first.edits, *second.edits], images)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in directly.parameters()]
    at_once = apply(copy.deepcopy(residual), both, images)
    assert all(map(torch.equal, at_once.parameters(), directly.parameters()))


class Cached(nn.Module):
    """Keeps what it makes of a parameter while it is in evaluation, as LeViT's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(24, 24), nn.Linear(24, 5)
        self.bias, self.kept = nn.Parameter(torch.randn(3, 8, 8)), {}

    def train(self, mode: bool = True) -> Cached:
        self.kept = {} if mode else self.kept
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not self.kept:
            self.kept["bias"] = self.bias.detach().clone()
        heads = self.first(x.flatten(2).reshape(-1, 8, 24)).reshape(-1, 8, 3, 8).transpose(1, 2)
        scores = heads @ heads.mT + (self.bias if self.training else self.kept["bias"])
        return self.head((scores.softmax(-1) @ heads).transpose(1, 2).flatten(2)).mean(1)


def test_what_a_model_keeps_in_evaluation_is_cut_as_training_left_it(images: Tensor) -> None:
    model = Cached().eval()
    analysis = analyse(model, images)
    assert [group.width for group in analysis.groups] == [3]
    model.train()
    nn.init.normal_(model.bias)
    cut = keep_units(model.eval(), analysis, {"first": [0, 2]}, images)
    assert check_equal(cut.model, cut.masked, images, "surgery") < 1e-5
    other = Cached().eval()
    assert not torch.equal(other.bias, model.bias)
    kept = {"first": [1]}
    cut = keep_units(other, analyse(other, images), kept, images)
    assert check_equal(cut.model, cut.masked, images, "surgery") < 1e-5
