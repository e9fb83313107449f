"""Malformed inputs are refused in a line, or do no harm; `examples/benchmarks/fuzz.py` tries many more."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "fuzz.py"


def test_malformed_inputs_of_every_kind_are_refused_in_a_line_or_do_no_harm() -> None:
    outcomes = runpy.run_path(str(SCRIPT))["fuzzed"](rounds=2, seed=7)
    assert len(outcomes) == 10
    for kind, outcome in outcomes.items():
        assert outcome.refused, kind
        assert not outcome.faults, f"{kind}: {outcome.faults[0]}"
