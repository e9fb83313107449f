"""What a trial does, in words."""

from dataclasses import asdict

import pytest

import autocompress as ac
from autocompress.trial import Stage, TrialConfig, changed_settings, move_text


def _stage(config, method):
    return Stage(method, asdict(config))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            TrialConfig((_stage(ac.Alcn.Config(initial_ratio=0.567), "alcn"),), lr_scale=4.0),
            "alcn (initial_ratio 0.567), rate ×4",
        ),
        (
            TrialConfig(
                (_stage(ac.Lc.Config({"*": ac.MixedPrecision(bits=5)}), "lc"),), epochs=0, lr_scale=4.0
            ),
            "lc (schemes * mixed bits 5)",
        ),
        (
            TrialConfig((_stage(ac.Lc.Config({("a", "b"): ac.PruneL0(keep=0.1) + ac.Codebook(k=2)}), "lc"),)),
            "lc (schemes a and b sum prune_l0 keep 0.1 and codebook k 2 joint True)",
        ),
        (TrialConfig(parent=3, distill_weight=0.5, teacher=2), "trained on, taught by trial 2"),
        (TrialConfig(distill_weight=0.5), "trained on, taught by the reference"),
        (TrialConfig(epochs=0, taken_over=7), "taken over from trial 7 of the other run"),
        (TrialConfig((Stage("gone", {"x": [1, 2, 3]}),)), "gone (x of 3)"),
    ],
)
def test_a_move_is_told_by_what_is_not_default(config, text):
    assert move_text(config) == text


def test_settings_read_from_json_are_compared_as_what_they_were():
    config = TrialConfig((_stage(ac.Lc.Config(), "lc"),))
    stage = TrialConfig.from_json(config.to_json()).stages[0]
    assert changed_settings(stage.method, stage.config) == {}
