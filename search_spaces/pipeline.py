"""The whole search space of a trial: what it starts from, what happens to that, and how it is trained."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import optuna

import autocompress as ac

from .targets import Step, enough, step

__all__ = ["Aim", "Guided", "Plan", "Proposal", "aim", "can_suggest", "enough", "guided", "plan", "suggest"]

# `SearchSpace.level` of methods that decide how weights are stored, and that train for how files round them.
_STORAGE, _PRECISION = 3, 4
# From where on of [0, 1] a parent is only trained on.
_ONLY_TRAIN = 0.9
# Share of what the reference costs at which nearly all models fail their bounds; guided trials go there in
# steps that get smaller, and are told by the bounds where to turn back.
_FLOOR = 0.01
# What a trial beyond the cheap end keeps of its parent's cost at most, as widths are whole numbers; so large
# budgets fill gaps once they are down.
_LEAST_STEP = 0.95
# Added to the trials that are left, in proportion to which each of them goes: 0 ends in no steps at all, and
# many are equal steps.
_EVENNESS = 4
# Trials in which budgets of more go down, and how many more go there if they must. Hypervolumes over MACs of
# 48 trials of 5 epochs on digits (search_scale.py, seeds 1 and 2) are 0.87 and 0.86; before setbacks were
# tried again 0.94 and 0.86, and where all 48 went down 0.68 and 0.79.
_DESCENT, _LAST = 24, 6
# Neighbours on the front whose costs differ by less than this ratio have no gap between them.
_GAP = 0.8
# What a trial beyond the cheap end keeps of its parent's cost at least, where it may start from several.
_FAR = 0.25
# Trials from a model that did not help the front, after which it is left to the sampler: with each rate one.
_TRIES = 3
# A step that lost so many times what any of at least so many before it did is a setback.
_MUCH, _BEFORE = 2, 5
# What one trial leaves of its parent's cost at least.
_LEAST_KEPT = 0.1
# Every so many guided trials the method that was tried least is tried, unless there are few in all: a lineage
# of one method then ends better than the beginnings of several.
_EXPLORING, _FEW = 6, 16
# Share of what a method was told to save, in logarithms, below which it found nothing to cut.
_IDLE = 0.25
# Ratio of two models' costs above which what holds for one does for the other.
_SAME_COST = 0.95
# What a trial keeps of its parent's cost at least while that is out of bounds, and of the bound at the end.
_STRIDE, _INWARD = 0.5, 0.95
# Bits of a weight that models are stored with, one after the other: hypervolumes over bytes of 12 trials of 5
# epochs (search_efficiency.py, 3 seeds) are 0.77, 0.77 and 0.79 on digits with 4; 4 and 3; 5, 4 and 3, and
# 0.72, 0.72 and 0.74 on the table.
_BITS = (5.0, 4.0, 3.0)
# Share of the budget from which on what comes to the front is stored as codes, so that who ends a search
# early has them. Hypervolumes over bytes on digits (search_efficiency.py, 3 seeds, the median one) are 0.73
# after 5 of 12 trials and 0.81 in the end; with five bits after each third, and the others at the end, 0.49
# and 0.85. On the table the end is 0.80 by both.
_STORED_FROM = 1 / 4
# Bits that hardly lose anything, for what codes of few bits were not good enough for.
_MANY_BITS = 16.0
# Costs that are less where weights are stored as codes.
_OF_CODES = ("bytes", "weight_bytes")
# How guided trials are trained; what the sampler proposes varies it. Short trials train too little at the
# recipe's own rate: hypervolumes over MACs of 12 trials of 5 epochs (search_efficiency.py) are 0.83 on digits
# (6 seeds) and 0.90 on a table (4, in steps of equal ratios) at 8 times that rate, on the table 0.82 at 4
# times. Where these and 2 were tried on the first three trials, which lose nothing at any, noise chose among
# them: 0.81 and 0.86. With a teacher of weight 0.5 and temperature 2 they were then 0.81 and 0.86, at 4 0.79
# and 0.83; of weight 0.25 0.77 and 0.86, and 0.78 and 0.86.
_SHARE, _LR_SCALES, _TEMPERATURE = 0.2, (8.0, 4.0, 2.0), 2.0
# Name of the factor on the recipe's rate, and what is proposed at least.
_RATE = "lr_scale"
_LEAST_RATE = 0.2
# Share of what scores may lose in all, which a trial may lose without being tried once more at a lower rate;
# and that rate, over its own.
_TOO_MUCH, _LOWER = 1 / 3, 1 / 4
_DISTILL = {"teacher": "best", "distill_weight": 0.5, "distill_temperature": _TEMPERATURE}


@dataclass(frozen=True)
class Proposal:
    """The methods' configurations, in order, and how a trial is trained.

    Args:
        configs: of the methods; none only trains the parent on.
        parent: number of the trial that is started from; 0 is the reference.
        compress_share: share of the epochs that train with methods.
        lr_scale: factor on the recipe's learning rate.
        distill_weight: share of the loss that is learned from the teacher.
        distill_temperature: of that part.
        teacher: number of the trial that is learned from.
    """

    configs: tuple[Any, ...]
    parent: int
    compress_share: float
    lr_scale: float
    distill_weight: float
    distill_temperature: float
    teacher: int


def suggest(trial: optuna.Trial, family: ac.Family, spaces: Mapping[str, ac.SearchSpace]) -> Proposal:
    """A parent, by its place along the front; a method, by name, unless the parent is only trained on; and
    the training.

    A parent that the method cannot compress gives way to the nearest that it came from. Pipelines are
    lineages: a trial that stores weights as codes starts from one that removed channels.
    """
    parent = family.at(trial.suggest_float("parent", 0.0, 1.0))
    space = spaces[trial.suggest_categorical("method", sorted(spaces))]
    configs: tuple[Any, ...] = ()
    # A number, so that a sampler has to find out first that training on is worth a trial.
    only_train = trial.suggest_float("only_train", 0.0, 1.0) > _ONLY_TRAIN and parent.number != 0
    if not only_train:
        parent = family.nearest(parent, lambda candidate: space.unsupported(candidate.profile) is None)
        configs = _several(space.suggest(trial, parent.profile))
    taught = family.distill and trial.suggest_categorical("teacher", ["none", "best"]) == "best"
    return Proposal(
        configs=configs,
        parent=parent.number,
        compress_share=trial.suggest_float("compress_share", 0.1, 0.8),
        lr_scale=trial.suggest_float(_RATE, _LEAST_RATE, _LR_SCALES[0], log=True),
        distill_weight=trial.suggest_float("distill_weight", 0.1, 0.9) if taught else 0.0,
        distill_temperature=trial.suggest_float("distill_temperature", 1.0, 6.0) if taught else _TEMPERATURE,
        teacher=family.best.number if taught else 0,
    )


def can_suggest(params: Mapping[str, Any], family: ac.Family, spaces: Mapping[str, ac.SearchSpace]) -> bool:
    """Whether a trial of a search with these spaces could be suggested these parameters, all of its own."""
    if params.get("method") not in spaces:
        return False
    try:
        with warnings.catch_warnings():
            # Optuna's word for a value out of range.
            warnings.simplefilter("error")
            # A run without teachers did not suggest one.
            suggest(cast(Any, optuna.trial.FixedTrial({"teacher": "none", **params})), family, spaces)
    except Exception:
        # A space, which may be a user's own, has no such parameter or value for this model.
        return False
    return True


def _several(configs: Any) -> tuple[Any, ...]:
    """A space of the user's own may return several configurations, which follow each other."""
    return tuple(configs) if isinstance(configs, (tuple, list)) else (configs,)


@dataclass(frozen=True)
class Aim:
    """What a trial is to reach: from a parent, a share of the parent's cost.

    Args:
        parent: the model.
        keep: the share.
    """

    parent: ac.Parent
    keep: float

    @property
    def cost(self) -> float:
        """The share of the reference's cost that is aimed at."""
        return self.parent.cost * self.keep


def aim(family: ac.Family, floor: float = _FLOOR, patience: int = 1) -> Aim | None:
    """Where a point would add most to the front: beyond its cheap end as long as bounds allow, else where
    most score is lost for the cost that it saves; None where all that was tried often enough.

    While all is too costly for the bounds, trials go there in few steps. Beyond the cheap end they go down to
    a floor, each a little further than those that run now; once those from there were out of bounds, halfway
    (in logarithms) between them and the last that was not. A model that lost far too much is no cheap end:
    the one before it is gone on from instead.

    Args:
        family: to add to.
        floor: cost over the reference's below which there is nothing to gain.
        patience: trials from the cheapest model that must be out of bounds until that is taken for an end.
    """
    setbacks = _setbacks(family)
    cheapest = _without(setbacks, family.front)[-1]
    lowest = min([cheapest.cost, *(other.cost for other in family.running)])
    failed = [
        attempt.cost
        for attempt in family.attempts
        if attempt.parent == cheapest.number and not attempt.feasible
        if attempt.cost is not None and attempt.cost < cheapest.cost
    ]
    target: float | None = None
    if cheapest.cost > family.bound:
        target = max(_INWARD * family.bound, _STRIDE * cheapest.cost)
    elif len(failed) >= patience:
        beyond = max(failed)
        target = math.sqrt(beyond * lowest) if beyond < _GAP * lowest else None
    elif lowest > floor:
        share = _share_of_the_way(_left_to_go_down(family))
        target = max(floor, lowest * min(_LEAST_STEP, (floor / lowest) ** share))
    if target is not None:
        parent = _start(family, target, setbacks)
        if target < _LEAST_KEPT * parent.cost and family.running:
            # Too far for one trial, and others went as far as one may.
            begun = [other.cost for other in family.running if other.cost < parent.cost]
            target = _apart([parent.cost, *begun]) or target
        return Aim(parent, max(_LEAST_KEPT, target / parent.cost))
    return _widest_gap(family, setbacks)


def _setbacks(family: ac.Family) -> set[int]:
    """Numbers of the steps that lost more than twice what any before them did, unless others from the same
    parent did as well, or ended without a result. None of few trials, where noise would cost one to find out.

    Hypervolumes over MACs (search_efficiency.py, means of three seeds) are 0.93 of 24 trials of 6 epochs on a
    table and 0.86 of 24 of 5 on digits; where what a setback left was gone on from, 0.84 and 0.85.
    """
    setbacks: set[int] = set()
    if _budget(family) < _FEW:
        return setbacks
    moves = [attempt for attempt in family.attempts if attempt.asked and attempt.trained]
    begun = Counter(move.parent for move in moves)
    ended = [move for move in moves if move.cost is not None and move.feasible]
    least: dict[int, float] = {}
    for move in ended:
        least[move.parent] = min(least.get(move.parent, math.inf), move.lost)
    most = 0.0
    for place, move in enumerate(ended):
        lost_much = place - len(setbacks) >= _BEFORE and move.lost > _MUCH * most
        if lost_much and (begun[move.parent] == 1 or _MUCH * least[move.parent] < move.lost):
            setbacks.add(move.number)
        else:
            most = max(most, move.lost)
    return setbacks


def _without(setbacks: Collection[int], front: Sequence[ac.Parent]) -> Sequence[ac.Parent]:
    """The models that are no setbacks; all, where what was better than those is gone."""
    return [parent for parent in front if parent.number not in setbacks] or front


def _left_to_go_down(family: ac.Family) -> int:
    """Of the trials that are left, those that go down: large budgets go down as one of `_DESCENT` trials does
    and fill gaps then; where that did not get there, in a few more."""
    return max(min(family.left, _LAST), family.left - max(0, _budget(family) - _DESCENT))


def _budget(family: ac.Family) -> int:
    """Trials of the whole search: those that trained, train or are left."""
    return sum(attempt.trained for attempt in family.attempts) + len(family.running) + family.left


def _share_of_the_way(left: int) -> float:
    """Of the way down, in logarithms, what the first of so many trials goes if each goes in proportion to
    the trials that are left: large models lose little by large steps, small ones much.

    Hypervolumes over MACs on digits (search_efficiency.py, 12 trials of 5 epochs, 6 seeds) after 4 and after
    all trials are 0.45 and 0.82; with an evenness of 0 0.53 and 0.79; equal steps gave 0.41 and 0.81, at
    rates that were chosen otherwise.
    """
    return 2 * (left + _EVENNESS) / (left * (left + 1 + 2 * _EVENNESS))


def _apart(costs: Sequence[float]) -> float | None:
    """Halfway (in logarithms) between the two neighbours that are furthest apart; None of one cost."""
    pairs = list(itertools.pairwise(sorted(costs)))
    if not pairs:
        return None
    below, above = max(pairs, key=lambda pair: pair[1] / pair[0])
    return math.sqrt(below * above)


def _start(family: ac.Family, cost: float, setbacks: Collection[int]) -> ac.Parent:
    """What a trial beyond the cheap end starts from: the cheapest model that is no setback, or where trials
    from that run already, the next above it from which the way is not far; these have better scores."""
    begun = Counter(other.parent for other in family.running)
    parents = _without(setbacks, family.front)
    near = [parent for parent in parents if _FAR * parent.cost <= cost] or [parents[-1]]
    return min(near, key=lambda parent: (begun[parent.number], parent.cost))


def _widest_gap(family: ac.Family, setbacks: Collection[int]) -> Aim | None:
    """Below the model of the front from which a trial would gain most: what its score is above the front's,
    over the logarithm of cost. The more trials from it did not help, the less that counts.

    A trial goes halfway (in logarithms) to the next model, or where that is near, past it.
    """
    best, most = None, 0.0
    # As codes, what has too many bytes yet may be within bounds.
    bound = math.inf if family.metric in _OF_CODES else family.bound
    tried = _tries(family, setbacks)
    for above, below in itertools.pairwise(family.front):
        apart = below.cost < _GAP * above.cost
        halfway = math.sqrt(above.cost * below.cost)
        target = min(halfway if apart else _GAP * above.cost, _INWARD * bound)
        if apart and target <= below.cost:
            continue  # all that is between them is out of bounds
        tries = tried[above.number]
        gain = _gain(family, above, below.cost if apart else target) / (1 + tries)
        if tries < _TRIES and gain > most:
            best, most = Aim(above, max(_LEAST_KEPT, target / above.cost)), gain
    return best


def _tries(family: ac.Family, setbacks: Collection[int], method: str | None = None) -> Counter[int]:
    """Guided trials from each model, by a method or by any, that did not help the front, or are not known to
    yet."""
    helped = {parent.number for parent in family.front}.difference(setbacks)
    ended = [a for a in family.attempts if a.asked and a.trained and a.number not in helped]
    begun: list[ac.Attempt | ac.Running] = [*ended, *family.running]
    return Counter(trial.parent for trial in begun if method in (None, trial.params.get("method")))


def _gain(family: ac.Family, parent: ac.Parent, cost: float) -> float:
    """The area between a model's score and the front's, over the logarithm of cost, down to a cost."""
    costs = [p.cost for p in family.front if cost < p.cost < parent.cost]
    scores = [p.score for p in family.front if p.cost < parent.cost] + [family.front[-1].score]
    area, upper = 0.0, parent.cost
    for lower, score in zip([*costs, cost], scores, strict=False):
        area += (parent.score - score) * math.log(upper / lower)
        upper = lower
    return area


@dataclass(frozen=True)
class Guided:
    """A trial that goes where the front lacks a point.

    Args:
        params: what is to be suggested for it.
        cost: that it aims at, over the reference's.
        asked: −ln of the share of its parent's cost that its method is told to keep.
        trained: whether the trial trains; one that does not is extra, beside the budget of trials.
    """

    params: Mapping[str, Any]
    cost: float
    asked: float
    trained: bool = True


def guided(family: ac.Family, spaces: Mapping[str, ac.SearchSpace]) -> Guided | None:
    """A trial that goes where the front lacks a point.

    None where it lacks none, where the last two trials ended without a result, or where no space knows how to
    keep a share of a cost: then the sampler proposes by itself.

    Raises:
        UsageError: a space failed to say how.
    """
    if len(family.attempts) > 1 and all(attempt.cost is None for attempt in family.attempts[-2:]):
        return None
    coded = _coded(family, spaces)
    if coded is not None:
        return coded
    gentler = _at_a_lower_rate(family, spaces) if family.left > 0 else None
    if gentler is not None:
        return gentler
    towards = step(family, len(_LR_SCALES)) if family.target is not None and family.left > 0 else None
    if towards is not None and towards.cost is None:
        return _trained_on(family, spaces, towards)
    aimed = _aimed(family, spaces, towards) if family.left > 0 else None
    if aimed is None:
        return None
    setbacks = _setbacks(family)
    for name in _by_merit(family, spaces, aimed.parent, setbacks):
        space = spaces[name]
        if space.unsupported(aimed.parent.profile) is not None or _failed(family, name, aimed.parent):
            continue
        asked = max(_LEAST_KEPT, aimed.keep ** _reserve(family, name))
        params = _move(name, space, aimed.parent, asked, family.metric)
        if params is not None:
            place = {"parent": family.position(aimed.parent), "method": name, "only_train": 0.0}
            tries = _tries(family, setbacks, name)[aimed.parent.number] if towards is None else towards.tries
            rate = _rate(family, tries)
            training = {"compress_share": _SHARE, _RATE: rate, **_teaching(family)}
            if space.level == _PRECISION:  # which costs what its parent does
                return Guided(place | dict(params) | training, aimed.parent.cost, 0.0)
            return Guided(place | dict(params) | training, aimed.cost, -math.log(asked))
    return None


def _at_a_lower_rate(family: ac.Family, spaces: Mapping[str, ac.SearchSpace]) -> Guided | None:
    """The last move at a rate at which all lost far too much, once more as it was at a fraction of that: what
    has converged loses most by a high rate, if few epochs follow.

    None where a lower one was tried from there, or was found no better than this, or this than a higher.
    """
    moves = [a for a in family.attempts if a.asked and a.trained and a.cost is not None and _RATE in a.params]
    fine = {m.params[_RATE] for m in moves if m.feasible and m.lost <= _TOO_MUCH * family.margin}
    bad = [move for move in moves if move.params[_RATE] not in fine]
    if not bad:
        return None
    move = bad[-1]
    rate, name = move.params[_RATE], move.params.get("method")
    parent = family.kept.get(move.parent)
    begun: list[ac.Attempt | ac.Running] = [*moves, *family.running]
    alike = [o for o in begun if o.parent == move.parent and o.params.get("method") == name]
    lower = [other for other in alike if other.params[_RATE] < rate]
    if parent is None or name not in spaces or lower or rate <= _LEAST_RATE or _is_no_matter(moves, rate):
        return None
    gentler = {"parent": family.position(parent), _RATE: max(_LEAST_RATE, rate * _LOWER)}
    return Guided({**move.params, **gentler}, parent.cost * math.exp(-move.asked), move.asked)


def _is_no_matter(moves: Sequence[ac.Attempt], rate: float) -> bool:
    """Whether a move at this rate lost no less than one of its kind at a higher, or no more than one at a
    lower."""
    kinds: dict[tuple[int, Any], list[ac.Attempt]] = {}
    for move in moves:
        kinds.setdefault((move.parent, move.params.get("method")), []).append(move)
    return any(
        (move.lost - other.lost) * (other.params[_RATE] - rate) >= 0
        for alike in kinds.values()
        for move, other in itertools.product(alike, alike)
        if move.params[_RATE] == rate != other.params[_RATE]
    )


def _floor(family: ac.Family, spaces: Mapping[str, ac.SearchSpace]) -> float:
    """Cost below which half of a model's weights are less than a sixteenth of its file; weights count as what
    they are stored as at the end."""
    stored = _BITS[0] / 32 if _storage(spaces, family.metric) else 1.0
    # Half of them, stored · w / 2, are a sixteenth of what is beside them and all of them, b + stored · w.
    return max(_FLOOR, family.beside / (7 * stored))


def _aimed(family: ac.Family, spaces: Mapping[str, ac.SearchSpace], towards: Step | None) -> Aim | None:
    """What a step towards a target aims at; without one, where the front lacks a point."""
    if towards is None or towards.cost is None:
        return aim(family, _floor(family, spaces), _patience(family, spaces))
    return Aim(towards.parent, max(_LEAST_KEPT, towards.cost / towards.parent.cost))


def _trained_on(family: ac.Family, spaces: Mapping[str, ac.SearchSpace], towards: Step) -> Guided:
    """A trial that only trains a model on."""
    place = {"parent": family.position(towards.parent), "method": min(spaces), "only_train": 1.0}
    training = {"compress_share": _SHARE, _RATE: _rate(family, towards.tries), **_teaching(family)}
    return Guided(place | training, towards.parent.cost, 0.0)


def _teaching(family: ac.Family) -> dict[str, Any]:
    """What a guided trial learns from, where trials may learn from a teacher."""
    return _DISTILL if family.distill else {}


def _move(
    name: str, space: ac.SearchSpace, parent: ac.Parent, keep: float, metric: str
) -> Mapping[str, Any] | None:
    """What a space, which may be a user's own, suggests to keep a share of a parent's cost by this metric."""
    try:
        return space.move(replace(parent.profile, aims_at=metric), keep)
    except Exception as error:
        raise ac.UsageError(
            f"space {name!r} must say by move(profile, keep) how to keep {keep:.3g} but: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _coded(family: ac.Family, spaces: Mapping[str, ac.SearchSpace]) -> Guided | None:
    """A model of the front with its weights as codes, as they are: that costs no training.

    From a quarter of the budget on, the costliest first, as it bears most; with fewer bits each time as long
    as its codes are good enough to be kept. Where the first are not, once more in half precision.
    """
    storage = _storage(spaces, family.metric)
    if not storage or (family.left > 0 and not _is_late(family)):
        return None
    tries: dict[int, list[ac.Attempt]] = {}
    for attempt in family.attempts:
        if attempt.asked and set(attempt.methods) & set(storage):
            tries.setdefault(attempt.parent, []).append(attempt)
    for parent in family.front:
        bits = _next_bits([attempt.kept for attempt in tries.get(parent.number, [])])
        if parent.number in family.coding or bits is None:
            continue
        keep = bits / 32
        for name in storage:
            params = _move(name, spaces[name], parent, keep, family.metric)
            if params is not None and spaces[name].unsupported(parent.profile) is None:
                place = {"parent": family.position(parent), "method": name, "only_train": 0.0}
                place |= {"compress_share": _SHARE, _RATE: 1.0}
                place |= {"teacher": "none"} if family.distill else {}
                return Guided(place | dict(params), parent.cost * keep, -math.log(keep), trained=False)
    return None


def _is_late(family: ac.Family) -> bool:
    """Whether so much of the budget is over that its front is stored as codes while the search goes on."""
    trained = sum(attempt.trained for attempt in family.attempts)
    return trained >= _STORED_FROM * (trained + len(family.running) + family.left)


def _next_bits(kept: Sequence[bool]) -> float | None:
    """The bits that a model is stored with next; none where more would be of no use.

    Args:
        kept: of each time that it was stored, whether its codes were good enough.
    """
    if not kept or (kept[-1] and len(kept) < len(_BITS)):
        return _BITS[len(kept)]
    return _MANY_BITS if kept == [False] else None


def _storage(spaces: Mapping[str, ac.SearchSpace], metric: str) -> tuple[str, ...]:
    """The spaces that store weights as codes, where that can make a cost less."""
    if metric not in _OF_CODES:
        return ()
    return tuple(name for name in spaces if spaces[name].level == _STORAGE)


@dataclass(frozen=True)
class Plan:
    """What guided trials do with a budget.

    Args:
        trials: of the budget.
        methods: spaces that can go on from any model, in the order in which they are tried; the first leads
            until another loses less.
        others: spaces that make no model cheaper but better as the file that it becomes, which are tried too
            where what was tried least is.
        exploring: every so many trials what was tried least is tried; 0 is never.
        codes: spaces that store the front's weights from a quarter of the budget on.
    """

    trials: int
    methods: tuple[str, ...]
    others: tuple[str, ...]
    exploring: int
    codes: tuple[str, ...]

    def explores(self, ended: int) -> bool:
        """Whether the trial after so many tries what was tried least."""
        return self.exploring > 0 and ended % self.exploring == self.exploring - 1

    def text(self, workers: int = 1) -> str:
        """The plan in one line, of a search that runs so many trials at a time."""
        if not self.methods:
            return f"{self.trials} trials: proposed by the sampler"
        first, *others = (*self.methods, *self.others)
        trials = f"{self.trials} trial{'s' if self.trials > 1 else ''}"
        parts = [f"{trials}: {first} makes the smallest so far smaller, in ever smaller steps"]
        if workers > 1:
            parts[0] += (
                f" ({workers} at a time, so that {math.ceil(self.trials / workers)} follow each other)"
            )
        if others:
            tried = f"every {_ORDINALS[self.exploring]} tries" if self.exploring else "too few to try"
            parts.append(f"{tried} {', '.join(others)}")
        if self.codes:
            by = ", ".join(self.codes)
            parts.append(f"from a quarter on the front is stored as codes too, by {by}, beside the budget")
        return "; ".join(parts)


_ORDINALS = {_EXPLORING: "sixth"}


def plan(trials: int, spaces: Mapping[str, ac.SearchSpace], metric: str) -> Plan:
    """What a budget pays for: few trials are one line of one method; many try the others too.

    Channels come first, then ranks, then blocks, then what is a user's own, then what trains for a file.

    Args:
        trials: of the budget.
        spaces: that the search has.
        metric: that costs are of.
    """
    order = {1: 0, 2: 1, 0: 2, None: 3}  # by `SearchSpace.level`
    methods = sorted(
        (name for name, space in spaces.items() if space.level in order and space.has_moves),
        key=lambda name: order[spaces[name].level],
    )
    others = [name for name, space in spaces.items() if space.level == _PRECISION] if methods else []
    return Plan(
        trials,
        tuple(methods),
        tuple(others),
        _EXPLORING if trials >= _FEW and len(methods) + len(others) > 1 else 0,
        _storage(spaces, metric),
    )


def _failed(family: ac.Family, name: str, parent: ac.Parent) -> bool:
    """Whether a method failed on a model, for another reason than its rate."""
    return any(
        attempt.failed and not attempt.diverged
        for attempt in family.attempts
        if attempt.parent == parent.number and attempt.params.get("method") == name
    )


def _reserve(family: ac.Family, name: str) -> float:
    """By how much a method must be asked for more than is wanted, in logarithms: methods that train decide by
    themselves how far they go."""
    tried = [a for a in family.attempts if a.params.get("method") == name and a.asked and a.saved > 0]
    if not tried:
        return 1.0
    return min(max(sum(a.asked for a in tried) / sum(a.saved for a in tried), 1.0), 3.0)


def _plan(family: ac.Family, spaces: Mapping[str, ac.SearchSpace]) -> Plan:
    """What the budget pays for, which is the trials that trained and those that are left."""
    return plan(sum(a.trained for a in family.attempts) + family.left, spaces, family.metric)


def _patience(family: ac.Family, spaces: Mapping[str, ac.SearchSpace]) -> int:
    """How many trials from a model must be out of bounds until that is taken for an end: where methods are
    tried, one of each."""
    planned = _plan(family, spaces)
    return len(planned.methods) if planned.exploring else 1


def _idle(attempt: ac.Attempt) -> bool:
    """Whether a method left its parent nearly as it was: it found nothing to cut."""
    return attempt.cost is not None and attempt.saved < _IDLE * attempt.asked


def _is_spent(family: ac.Family, name: str, parent: ac.Parent, setbacks: Collection[int]) -> bool:
    """Whether a method found nothing to cut at about this cost, or all that it made of this model was out of
    bounds or a setback."""
    tried = [a for a in family.attempts if a.params.get("method") == name and a.asked and a.cost is not None]
    good = [a.feasible and a.number not in setbacks for a in tried if a.parent == parent.number]
    idle = [a.cost for a in tried if _idle(a) and a.cost is not None]
    return (bool(good) and not any(good)) or any(
        _SAME_COST < cost / parent.cost < 1 / _SAME_COST for cost in idle
    )


def _by_merit(
    family: ac.Family, spaces: Mapping[str, ac.SearchSpace], parent: ac.Parent, setbacks: Collection[int]
) -> list[str]:
    """Spaces that can go on from a model, the one first whose trials lost least for what they saved; those
    that have nothing more to cut there are last.

    Before any has been tried, they come as `plan` has them; where it says so, what was tried least is first,
    of those that were no setback and in bounds.
    """
    attempts = [attempt for attempt in family.attempts if attempt.trained]
    planned = _plan(family, spaces)
    explores = planned.explores(len(attempts) + len(family.running))
    names = (*planned.methods, *planned.others) if explores else planned.methods
    tried = {name: [a for a in attempts if a.params.get("method") == name] for name in names}
    begun = Counter(other.params.get("method") for other in family.running)

    def price(name: str) -> float:
        # What saved nothing was training alone, and says nothing of what cutting costs.
        cut = [attempt for attempt in tried[name] if not _idle(attempt)]
        saved = sum(attempt.saved for attempt in cut)
        return sum(attempt.lost for attempt in cut) / saved if saved > 0 else math.inf

    def rank(name: str) -> tuple[float, ...]:
        place, spent = names.index(name), _is_spent(family, name, parent, setbacks)
        if explores:
            lost_much = any(a.number in setbacks or not a.feasible for a in tried[name])
            return spent, lost_much, len(tried[name]) + begun[name], place
        return spent, not tried[name], price(name), place

    return sorted(names, key=rank)


def _rate(family: ac.Family, tries: int) -> float:
    """The rate that lost least for what it saved where one method tried several from the same model, at first
    the highest; where the same was tried before, the others in turn; where one diverged, only those below it,
    or half of it, as far as `suggest` goes.

    Trials from different models say little of their rates: large ones lose nothing at any, small ones much.
    """
    tried: dict[tuple[int, str | None], list[ac.Attempt]] = {}
    for attempt in family.attempts:
        if attempt.asked and attempt.trained and _RATE in attempt.params:
            tried.setdefault((attempt.parent, attempt.params.get("method")), []).append(attempt)
    diverged = [a.params[_RATE] for same in tried.values() for a in same if a.diverged]
    too_high = min(diverged, default=math.inf)
    wins: Counter[float] = Counter()
    for same in tried.values():
        ended = [attempt for attempt in same if attempt.cost is not None]
        if len({attempt.params[_RATE] for attempt in ended}) > 1:
            best = min(ended, key=lambda attempt: attempt.lost / max(attempt.saved, _LEAST_KEPT))
            wins[best.params[_RATE]] += 1
    rates = [rate for rate in dict.fromkeys((*_LR_SCALES, *wins)) if rate < too_high]
    if not rates:
        return max(_LEAST_RATE, too_high / 2)
    first = max(rates, key=lambda rate: wins[rate])
    return sorted(rates, key=lambda rate: (-wins[rate], abs(math.log(rate / first))))[tries % len(rates)]
