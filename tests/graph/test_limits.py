"""What an analysis loses by limits: what stays, and all that is coupled with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

import autocompress as ac
from autocompress.graph import Analysis, CutPairs, analyse, within
from autocompress.graph.costs import layer_macs, profile
from autocompress.graph.proof import compact
from autocompress.graph.weights import weights_of
from autocompress.task.limits import Limits, settle
from tests.conftest import Residual
from tests.graph.zoo import FusedAttention, Shared, SplitAttention, Tokens

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def limited(
    model: nn.Module, exclude: Sequence[str] = (), at_least: Mapping[str, float] | None = None
) -> Analysis:
    return within(analyse(model, X), settle(model, exclude, at_least))


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


def test_without_limits_nothing_changes() -> None:
    analysis = analyse(chain(), X)
    assert within(analysis, Limits()) is analysis


def test_a_group_with_an_excluded_member_stays_whole_whatever_its_part_in_it() -> None:
    # It makes the units, reads them, or normalises them.
    for excluded, left in (("0", ["2", "5"]), ("2", ["5"]), ("3", ["0", "5"]), ("9", ["0", "2"])):
        assert [group.name for group in limited(chain(), [excluded]).groups] == left


def test_reasons_say_what_is_excluded_and_what_is_coupled_with_it() -> None:
    frozen = limited(chain(), ["BatchNorm2d"]).frozen
    assert frozen == {
        "3": "excluded by 'BatchNorm2d'",
        "2": "its channels are coupled with '3': excluded by 'BatchNorm2d'",
        "9": "it makes the model's outputs",
    }


@pytest.mark.parametrize("model", [Tokens(FusedAttention()), Tokens(SplitAttention())])
def test_heads_stay_where_a_layer_inside_attention_is_excluded(model: nn.Module) -> None:
    (projection,) = {"proj", "out"} & {name.rpartition(".")[2] for name, _ in model.named_modules()}
    whole, without = limited(model), limited(model, [f"body.{projection}"])
    concerned = [
        group.name for group in whole.groups if any(m.layer == f"body.{projection}" for m in group.members)
    ]
    assert concerned
    assert [g.name for g in without.groups] == [g.name for g in whole.groups if g.name not in concerned]


def test_layers_that_share_a_weight_with_an_excluded_one_stay() -> None:
    model = Shared()
    names = {layer for group in limited(model, ["first"]).groups for layer in group.layers}
    assert not {name for name, p in model.named_modules() if p is model.first} & names
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5))
    model[3].weight = model[2].weight
    assert limited(model).groups
    assert not limited(model, ["2"]).groups


def kept_units(analysis: Analysis, name: str) -> tuple[int, int]:
    group = analysis.group(name)
    return group.least, group.width


def test_shares_are_of_what_there_was_before_anything_was_cut() -> None:
    model = chain().eval()
    limits = settle(model, at_least={"2": 0.5})
    assert kept_units(within(analyse(model, X), limits), "2") == (6, 12)
    smaller, _ = compact(model, analyse(model, X), {"2": list(range(8))}, X)
    assert kept_units(within(analyse(smaller, X), limits), "2") == (6, 8)
    least, _ = compact(smaller, analyse(smaller, X), {"2": list(range(6))}, X)
    analysis = within(analyse(least, X), limits)
    assert "2" not in [group.name for group in analysis.groups]
    assert analysis.frozen["2"] == "at least 0.5 of '2' must stay, which is all that is left of it"


def test_the_share_of_a_normalisation_is_that_of_what_it_normalises() -> None:
    assert kept_units(limited(chain(), at_least={"3": 0.75}), "2") == (9, 12)
    # A layer reads units that are another's.
    assert kept_units(limited(chain(), at_least={"9": 0.75}), "5") == (1, 12)


def test_weights_of_excluded_layers_are_no_layers_to_compress() -> None:
    model = chain()
    layers = weights_of(model, limited(model, ["2", "Linear"]), layer_macs(model, X))
    assert [layer.name for layer in layers] == ["0", "5"]


def branches(analysis: Analysis) -> list[tuple[str, ...]]:
    return [residual.branch for residual in analysis.residuals]


def test_a_branch_with_a_layer_that_stays_is_no_branch_to_drop() -> None:
    assert branches(limited(Residual())) == [("branch",)]
    assert branches(limited(Residual(), ["branch"])) == []
    assert branches(limited(Residual(), at_least={"branch": 0.1})) == []
    assert branches(limited(Residual(), ["stem"])) == [("branch",)]


@pytest.mark.parametrize("limit", [lambda m: limited(m, ["2"]), lambda m: limited(m, at_least={"2": 0.5})])
def test_nothing_bridges_a_layer_that_stays(limit: Callable[[nn.Module], Analysis]) -> None:
    model = chain()
    pairs, free = CutPairs(limit(model)), CutPairs(analyse(model, X))
    names = [cut.name for cut in pairs.cuts]
    # Cut points stand after the layers 0 (with its ReLU), 2 and 5, and before the last.
    after = [names.index(name) for name in ("1", "4", "8")]
    assert free.why_illegal(after[0], after[1]) is None
    assert pairs.why_illegal(after[1], after[2]) is None
    reason = pairs.why_illegal(after[0], after[2])
    assert reason is not None
    assert reason.startswith("what lies between must stay, '2': ")
    assert pairs.why_illegal(after[2], None) is None
    assert pairs.why_illegal(after[0], None) is not None


def test_a_profile_leaves_out_what_stays() -> None:
    model = chain()
    seen = profile(model, X, limited(model, ["5", "9"], {"0": 0.5, "2": 0.75}))
    whole = profile(model, X, analyse(model, X))
    assert [(group.name, group.least) for group in seen.groups] == [("0", 4)]
    assert [layer.name for layer in seen.layers] == ["0", "2"]
    # What is excluded; of 0, four of eight ranks; of 2, nine of twelve.
    assert seen.staying_params == 12 * 12 * 9 + 12 * 5 + 4 * (8 + 27) + 9 * (12 + 72)
    assert (seen.params, seen.macs) == (whole.params, whole.macs)
    assert not any(cut.partners for cut in seen.cut_points)
    assert not seen.new_head
    assert [layer.least for layer in seen.layers] == pytest.approx([4 * 35 / 216, 9 * 84 / 864])
    assert ac.ModelProfile.from_json(seen.to_json()) == seen


def test_profiles_that_were_stored_before_limits_are_read() -> None:
    data = profile(chain(), X, analyse(chain(), X)).to_json()
    old = {name: value for name, value in data.items() if not name.startswith(("staying", "new_head"))}
    for group in old["groups"]:
        del group["least"]
    for layer in old["layers"]:
        del layer["least"]
    assert ac.ModelProfile.from_json(old) == ac.ModelProfile.from_json(data)


class Functional(nn.Module):
    """Weights that belong to the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(8, 192)), nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(nn.functional.linear(x.flatten(1), self.first))
        return self.head(torch.relu(nn.functional.linear(x, self.second)))


def test_a_weight_of_the_model_itself_is_named_by_its_own_name() -> None:
    groups = limited(Functional(), ["first"]).groups
    assert [{m.tensor for m in group.members} for group in groups] == [{"second", "head.weight"}]
