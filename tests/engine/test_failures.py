"""What is said of trials that failed."""

from __future__ import annotations

from autocompress.engine.failures import grouped, told_failures


def test_failures_are_told_from_a_third_of_the_trials_on_the_commonest_first() -> None:
    reasons = {2: "loss is NaN at step 17", 5: "too narrow", 7: "loss is NaN at step 2.5e+3"}
    assert told_failures(reasons, 10) is None
    assert told_failures({}, 0) is None
    assert told_failures(reasons, 9) == (
        "3 of 9 trials failed: 2 × loss is NaN at step 17 (trials 2, 7); 1 × too narrow (trial 5)"
    )


def test_many_reasons_and_many_trials_of_one_are_cut_short() -> None:
    assert grouped(dict.fromkeys(range(1, 6), "alike")) == "5 × alike (trials 1, 2, 3, …)"
    letters = dict(enumerate("abcdefg"))
    assert grouped(letters).endswith("1 × d (trial 3); 3 more reasons")
