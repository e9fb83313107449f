"""The study on real SQLite: recording, constraints, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from autocompress import pareto
from autocompress.errors import SettingsError
from autocompress.measure import Constraint, Objective
from autocompress.measure.resampling import REPLICATES
from autocompress.study import CONFIG, SearchStudy, make_sampler, samplers, sqlite_url

OBJECTIVES = (Objective("accuracy", "maximize"), Objective("bytes", "minimize"))
BASE = {"accuracy": 0.9, "bytes": 100.0}


def study(folder: Path, constraint: str | None = "accuracy>=ref-0.1", seed: int = 0) -> SearchStudy:
    known = {"accuracy": "maximize", "bytes": "minimize"}
    constraints = (Constraint.parse(constraint, known),) if constraint else ()
    made = SearchStudy(sqlite_url(folder), "test", OBJECTIVES, constraints, folder, "auto", seed)
    made.add_reference(BASE, {"config": {}})
    return made


def run(made: SearchStudy, accuracy: float, size: float) -> int:
    trial = made.ask()
    trial.suggest_float("x", 0, 1)
    made.complete(trial.number, {"accuracy": accuracy, "bytes": size}, BASE, {"config": {}})
    return trial.number


def test_trial_0_is_the_reference_and_is_recorded_once(tmp_path: Path) -> None:
    study(tmp_path)
    made = study(tmp_path)
    assert [t.values for t in made.study.trials] == [[0.9, 100.0]]
    assert made.study.metric_names == ["accuracy", "bytes"]
    assert made.finished() == 0


def test_front_is_feasible_non_dominated_and_best_primary_first(tmp_path: Path) -> None:
    made = study(tmp_path)
    good = run(made, 0.85, 50)
    run(made, 0.84, 60)
    run(made, 0.3, 1)
    best = run(made, 0.95, 90)
    assert [t.number for t in made.front(BASE)] == [best, good]
    assert [t.number for t in made.study.best_trials] in ([good, best], [best, good])
    assert made.study.trials[3].user_attrs["feasible"] is False


def test_leftovers_are_closed_and_their_parameters_run_again(tmp_path: Path) -> None:
    made = study(tmp_path)
    run(made, 0.8, 50)
    dead = made.ask()
    value = dead.suggest_float("x", 0, 1)
    again = study(tmp_path, seed=1)
    assert again.close_leftovers() == 1
    assert not again.study.get_trials(states=(TrialState.RUNNING,))
    assert again.finished() == 1
    assert again.counts() == {"complete": 1, "fail": 0, "pruned": 0, "interrupted": 1}
    assert again.ask().suggest_float("x", 0, 1) == value
    assert again.close_leftovers() == 1
    # It ran twice; after the third time something is wrong with it.
    assert again.ask().suggest_float("x", 0, 1) == value
    assert again.close_leftovers() == 0
    assert again.counts() == {"complete": 1, "fail": 1, "pruned": 0, "interrupted": 2}


def test_what_died_runs_again_at_most_twice_as_it_was(tmp_path: Path) -> None:
    made = study(tmp_path)
    trial = made.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(CONFIG, {"parent": 7})
    for run in (1, 2, 3):
        again = made.may_run_again(trial.number)
        assert again == (run < 3)
        made.fail(trial.number, "the worker process died", "Traceback", again=again)
        assert made.study.trials[trial.number].user_attrs["traceback"] == "Traceback"
        trial = made.ask()
        assert (trial.user_attrs.get(CONFIG) == {"parent": 7}) == again
    assert made.failures() == {3: "the worker process died"}


def test_failed_trials_keep_their_reason_and_count(tmp_path: Path) -> None:
    made = study(tmp_path)
    made.fail(made.ask().number, "it broke")
    made.prune(made.ask().number, "no use")
    assert [t.user_attrs["reason"] for t in made.study.trials[1:]] == ["it broke", "no use"]
    assert made.counts() == {"complete": 0, "fail": 1, "pruned": 1, "interrupted": 0}
    assert made.finished() == 2


def test_what_was_stopped_early_has_values_and_is_on_no_front(tmp_path: Path) -> None:
    made = study(tmp_path)
    trial = made.ask()
    trial.suggest_float("x", 0, 1)
    metrics = {"accuracy": 0.99, "bytes": 1.0}
    made.prune(trial.number, "others are better", metrics, {"config": {"parent": 0}})
    stored = study(tmp_path).study.trials[1]
    assert stored.state is TrialState.PRUNED
    assert stored.user_attrs == {
        "reason": "others are better",
        "metrics": metrics,
        "details": {"config": {"parent": 0}},
    }
    assert [t.number for t in made.front(BASE)] == [0]
    assert made.finished() == 1


def test_interrupted_trials_are_enqueued_and_do_not_count(tmp_path: Path) -> None:
    made = study(tmp_path)
    trial = made.ask()
    value = trial.suggest_float("x", 0, 1)
    made.fail(trial.number, "interrupted", interrupted=True)
    assert made.finished() == 0
    assert made.ask().suggest_float("x", 0, 1) == value


def test_test_metrics_are_merged(tmp_path: Path) -> None:
    made = study(tmp_path)
    made.set_test_metrics({1: {"accuracy": 0.5}})
    made.set_test_metrics({2: {"accuracy": 0.6}})
    assert study(tmp_path).test_metrics() == {1: {"accuracy": 0.5}, 2: {"accuracy": 0.6}}


@pytest.mark.parametrize("name", ["auto", "tpe", "nsga2", "gp", "random"])
def test_samplers_propose_under_constraints_and_repeat_with_their_seed(name: str, tmp_path: Path) -> None:
    values = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        made = study(tmp_path / folder)
        made.study.sampler = make_sampler(name, 3)
        for number in range(3):
            run(made, 0.8 + 0.02 * number, 50 + number)
        values.append([t.params for t in made.study.trials])
    assert values[0] == values[1]


def test_unknown_samplers_storages_and_objectives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="sampler must be one of auto"):
        make_sampler("best", 0)
    with pytest.raises(SettingsError, match="storage 'nonsense' cannot be used"):
        SearchStudy("nonsense", "test", OBJECTIVES)
    study(tmp_path)
    with pytest.raises(SettingsError, match="objectives must be the study's"):
        SearchStudy(sqlite_url(tmp_path), "test", OBJECTIVES[:1])


def test_what_is_measured_last_decides_what_stays_on_the_front(tmp_path: Path) -> None:
    made = study(tmp_path)
    small, middle, large = run(made, 0.85, 50), run(made, 0.87, 60), run(made, 0.89, 70)
    assert [t.number for t in made.front(BASE)] == [0, large, middle, small]
    made.set_final_metrics({middle: {"bytes": 80.0}})
    made.set_final_metrics({small: {"accuracy": 0.5}})
    assert [t.number for t in made.front(BASE)] == [0, large]
    assert made.final_metrics() == {middle: {"bytes": 80.0}, small: {"accuracy": 0.5}}


def test_what_is_asked_for_is_suggested_and_what_is_left_open_is_drawn(tmp_path: Path) -> None:
    made = study(tmp_path)
    trial = made.ask({"method": "b"}, asked=0.7)
    assert trial.suggest_categorical("method", ["a", "b", "c"]) == "b"
    assert 0 <= trial.suggest_float("other", 0, 1) <= 1
    assert trial.user_attrs["asked"] == 0.7
    made.fail(trial.number, "cut off", interrupted=True)
    assert made.waiting()
    again = made.ask()
    assert (again.suggest_categorical("method", ["a", "b", "c"]), again.user_attrs["asked"]) == ("b", 0.7)
    assert not made.waiting()


def test_extra_trials_are_beside_the_budget(tmp_path: Path) -> None:
    made = study(tmp_path)
    for extra in (False, True):
        trial = made.ask({"method": "a"}, extra=extra)
        made.complete(trial.number, {"accuracy": 0.9, "bytes": 50}, BASE, {"config": {}})
    made.prune(made.ask().number, "the same as trials before it", extra=True)
    assert made.finished() == 1
    assert made.counts() == {"complete": 2, "fail": 0, "pruned": 0, "interrupted": 0}


def with_replicates(made: SearchStudy, accuracy: float, size: float, replicates: list[float]) -> int:
    trial = made.ask()
    details = {"config": {}, "replicates": {"accuracy": replicates}}
    made.complete(trial.number, {"accuracy": accuracy, "bytes": size}, BASE, details)
    return trial.number


def test_trials_within_noise_of_the_front_are_likely_to_be_on_it(tmp_path: Path) -> None:
    made = study(tmp_path, None)
    noise = np.random.default_rng(0).normal(0, 0.01, REPLICATES)
    own = np.random.default_rng(1).normal(0, 0.01, REPLICATES)
    best = with_replicates(made, 0.95, 50, (0.95 + noise).tolist())
    near = with_replicates(made, 0.945, 60, (0.945 + own).tolist())
    paired = with_replicates(made, 0.945, 61, (0.945 + noise).tolist())
    far = with_replicates(made, 0.91, 62, (0.91 + own).tolist())
    assert [t.number for t in made.front(BASE)] == [best]
    likely = made.front_probabilities(BASE)
    assert likely[best] == 1
    # Of two independent errors of 0.01 the difference exceeds 0.005 with Φ(−0.005 / (√2 · 0.01)) = 0.36.
    assert likely[near] == pytest.approx(0.36, abs=0.12)
    assert likely[paired] == likely[far] == 0
    assert made.front_probabilities(BASE, [near, far]) == {near: 1, far: 0}


def test_a_trial_is_judged_alone_as_it_is_among_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path, None)
    draws = np.random.default_rng(0)
    noise = draws.normal(0, 0.01, REPLICATES)
    for size in (50, 60, 61, 62, 90):
        accuracy = 0.95 - float(draws.uniform(0, 0.01))
        own = draws.normal(0, 0.002, REPLICATES)
        with_replicates(made, accuracy, size, (accuracy + noise + own).tolist())
    numbers = range(6)
    front, likely = {trial.number for trial in made.front(BASE)}, made.front_probabilities(BASE)
    judged: list[int] = []
    dominated = pareto._dominated

    def counted(points: Any, tolerances: Any, positions: Any = None) -> Any:
        answer = dominated(points, tolerances, positions)
        judged.append(answer.shape[-1])
        return answer

    monkeypatch.setattr(pareto, "_dominated", counted)
    standings = {number: made.standing(number, BASE, numbers) for number in numbers}
    # However many trials there are: else the time of a search would grow with their square.
    assert set(judged) == {1}
    assert {number for number, (on_front, _) in standings.items() if on_front} == front
    for number in set(numbers) - front:
        assert standings[number][1] == likely[number]
    assert 0 < len(front) < 6


def test_latencies_that_differ_by_less_than_their_spread_are_ties(tmp_path: Path) -> None:
    objectives = (Objective("accuracy", "maximize"), Objective("latency", "minimize"))
    made = SearchStudy(sqlite_url(tmp_path), "test", objectives)
    base = {"accuracy": 0.9, "latency": 10.0, "latency_spread": 0.0}
    made.add_reference(base, {"config": {}})
    for accuracy, latency, spread in ((0.95, 5.0, 0.05), (0.94, 4.9, 0.01), (0.93, 4.5, 0.05)):
        trial = made.ask()
        metrics = {"accuracy": accuracy, "latency": latency, "latency_spread": spread}
        made.complete(trial.number, metrics, base, {"config": {}})
    assert [t.number for t in made.front(base)] == [1, 3]


def test_dropped_trials_are_on_no_front_and_others_take_their_place(tmp_path: Path) -> None:
    made = study(tmp_path)
    best, worse = run(made, 0.95, 50), run(made, 0.94, 60)
    assert [t.number for t in made.front(BASE)] == [best]
    made.drop({best: "its file is damaged"})
    assert [t.number for t in made.front(BASE)] == [worse]
    assert study(tmp_path).dropped() == {best: "its file is damaged"}


def commits_of(made: SearchStudy) -> list[object]:
    """One entry for each transaction that the study's database commits from now on."""
    commits: list[object] = []
    event.listen(made._database.engine, "commit", commits.append)
    return commits


def test_a_proposal_and_a_result_are_a_transaction_each(tmp_path: Path) -> None:
    made = study(tmp_path)
    commits = commits_of(made)
    with made.transaction():
        trial = made.ask()
        values = [trial.suggest_float(name, 0, 1) for name in "abc"]
    assert len(commits) == 1
    assert list(study(tmp_path).study.trials[1].params.values()) == values
    made.complete(trial.number, {"accuracy": 0.8, "bytes": 50.0}, BASE, {"config": {}})
    assert len(commits) == 2
    assert study(tmp_path).study.trials[1].state is TrialState.COMPLETE


def test_what_was_written_before_an_exception_stands(tmp_path: Path) -> None:
    made = study(tmp_path)

    def propose_and_break() -> None:
        with made.transaction():
            made.ask().suggest_float("x", 0, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        propose_and_break()
    assert study(tmp_path).study.trials[1].state is TrialState.RUNNING
    # Outside of a transaction all goes on as before.
    made.fail(1, "interrupted", interrupted=True)
    assert [t.state for t in study(tmp_path).study.trials[1:]] == [TrialState.FAIL, TrialState.WAITING]


def test_others_can_read_a_study_while_a_trial_is_proposed(tmp_path: Path) -> None:
    made = study(tmp_path)
    with made.transaction():
        made.ask().suggest_float("x", 0, 1)
        other = optuna.load_study(storage=sqlite_url(tmp_path), study_name="test")
        assert len(other.trials) == 1
    assert len(other.trials) == 2


def test_a_sole_writer_reads_what_it_wrote_and_others_what_there_is(tmp_path: Path) -> None:
    other = study(tmp_path)
    made = SearchStudy(sqlite_url(tmp_path), "test", OBJECTIVES, sole_writer=True)

    def look(study: SearchStudy) -> tuple[int, bool, list[int]]:
        return study.finished(), study.waiting(), [trial.number for trial in study.front(BASE)]

    assert look(made) == look(other) == (0, False, [0])
    run(made, 0.85, 50)
    made.drop({0: "it is damaged"})
    assert look(made) == look(other) == (1, False, [1])
    run(other, 0.95, 40)
    assert look(made) == (1, False, [1])
    assert look(other) == (2, False, [2])


def test_a_sole_writer_reads_each_trial_once_after_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study(tmp_path)
    made = SearchStudy(sqlite_url(tmp_path), "test", OBJECTIVES, sole_writer=True)
    for _ in range(8):
        made.ask().suggest_float("x", 0, 1)
    made.ended()
    reads: list[int] = []
    read = optuna.storages.RDBStorage.get_trial

    def noted(storage: optuna.storages.RDBStorage, trial_id: int) -> FrozenTrial:
        reads.append(trial_id)
        return read(storage, trial_id)

    monkeypatch.setattr(optuna.storages.RDBStorage, "get_trial", noted)
    monkeypatch.setattr(
        optuna.storages.RDBStorage, "_get_trials", lambda *args, **options: pytest.fail("all are read again")
    )
    assert not made.ended()[1:]
    assert reads == []
    proposed = made.ask().number
    stored = [trial.number for trial in made.study.get_trials() if trial._trial_id in reads]
    assert stored == [proposed]


def test_what_a_sole_writer_reads_is_what_another_process_would(tmp_path: Path) -> None:
    study(tmp_path)
    made = SearchStudy(sqlite_url(tmp_path), "test", OBJECTIVES, sole_writer=True)
    made.take_over("other", [3], {4: {"x": 0.5}}, {4: 0.1})
    for number in range(6):
        trial = made.ask({"x": 0.1 * number} if number == 2 else None)
        trial.suggest_float("x", 0, 1)
        if number == 3:
            made.fail(trial.number, "it broke", "Traceback", again=True)
        elif number == 4:
            made.prune(trial.number, "others are better", {"accuracy": 0.5, "bytes": 9})
        elif number != 5:
            metrics = {"accuracy": 0.5 + 0.1 * number, "bytes": 60}
            made.complete(trial.number, metrics, BASE, {"config": {}})
            assert made.study.trials == study(tmp_path).study.trials
        else:
            made.record_rung(trial.number, 1, {"accuracy": 0.3})
    made.set_worth({1: True})
    assert made.study.trials == study(tmp_path).study.trials
    assert made.study.user_attrs == study(tmp_path).study.user_attrs


def test_tpe_looks_at_as_many_trials_at_the_end_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    split = optuna.samplers._tpe.sampler._split_trials

    def counted(study: Any, trials: Any, *others: Any) -> Any:
        seen.append(len(trials))
        return split(study, trials, *others)

    monkeypatch.setattr(optuna.samplers._tpe.sampler, "_split_trials", counted)
    monkeypatch.setattr(samplers, "RECENT", 15)
    made = optuna.create_study(directions=["maximize", "minimize"], sampler=make_sampler("auto", 0))
    made.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)), n_trials=30)
    # The trial that is proposed is among the 15.
    assert seen[0] < 14
    assert seen[-10:] == [14] * 10
