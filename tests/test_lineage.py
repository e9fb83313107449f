"""What a family says of the models that trials may start from."""

from __future__ import annotations

import pytest

from autocompress.lineage import Family, Parent
from autocompress.task import GroupProfile, ModelProfile

PROFILE = ModelProfile(params=1000, macs=1000, groups=(GroupProfile("g", 8, 500, 500),))
BARE = ModelProfile(params=10, macs=10, groups=())


def family(*parents: Parent) -> Family:
    return Family(parents, {parent.number: parent for parent in parents})


REFERENCE = Parent(0, 1.0, 0.9, PROFILE)
HALF = Parent(3, 0.5, 0.92, PROFILE)
TENTH = Parent(7, 0.1, 0.85, BARE, parent=3)


def test_positions_go_along_the_front_from_the_costliest_to_the_cheapest() -> None:
    front = family(REFERENCE, HALF, TENTH)
    assert [front.at(position).number for position in (0.0, 0.2, 0.3, 0.7, 0.8, 1.0)] == [0, 0, 3, 3, 7, 7]
    for parent in front.front:
        assert front.at(front.position(parent)) is parent


def test_the_reference_alone_is_everywhere_on_its_front() -> None:
    alone = family(REFERENCE)
    assert alone.at(0.0) is alone.at(1.0) is REFERENCE
    assert alone.position(REFERENCE) == 0


def test_what_does_not_suit_gives_way_to_what_it_came_from() -> None:
    members = family(REFERENCE, HALF, TENTH)
    assert members.nearest(TENTH, lambda parent: bool(parent.profile.groups)) is HALF
    assert members.nearest(TENTH, lambda parent: False) is REFERENCE
    assert members.nearest(TENTH, lambda parent: True) is TENTH


def test_a_parent_whose_own_parent_is_gone_gives_way_to_the_reference() -> None:
    assert family(REFERENCE, TENTH).nearest(TENTH, lambda parent: False) is REFERENCE


@pytest.mark.parametrize(("score", "best"), [(0.92, 7), (0.91, 3), (0.95, 7)])
def test_the_best_has_the_greatest_score_and_of_equal_ones_the_least_cost(score: float, best: int) -> None:
    assert family(REFERENCE, HALF, Parent(7, 0.1, score, BARE)).best.number == best
