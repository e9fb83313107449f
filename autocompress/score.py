"""The scalar score of Camacho et al., Neurocomputing 630 (2025) 129661, for those who want one number."""

from __future__ import annotations

SCORE = "acc_comp"
TAU = 0.5


def acc_comp(accuracy: float, params: float, reference_params: float, tau: float) -> float:
    """τ·accuracy + (1 − τ)·(1 − params / reference params); the reference itself scores τ·accuracy.

    Args:
        accuracy: in [0, 1].
        params: of the compressed model.
        reference_params: of the reference, the greatest that counts.
        tau: weight of accuracy, in [0, 1].
    """
    return tau * accuracy + (1 - tau) * (1 - params / reference_params)
