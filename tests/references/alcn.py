"""ALCN's equations in NumPy."""

from __future__ import annotations

import numpy as np
from scipy.special import expit


def survival(h: np.ndarray, ratio: float, alpha: float, temperature: float, reference: str) -> np.ndarray:
    """s = σ(α(h − m)/(std(h)·T)), m the (1 − ρ)-quantile of h or its median."""
    m = np.median(h) if reference == "median" else np.quantile(h, 1 - ratio)
    return expit(alpha * (h - m) / (np.std(h) * temperature))


def loss(
    survivals: list[np.ndarray], ratios: list[float], weights: list[float], sparse: float, ratio: float
) -> float:
    """λ_sparse Σ w_g mean(s_g) + λ_ratio mean_g (mean(s_g) − ρ_g)²."""
    means = np.array([s.mean() for s in survivals])
    return float(sparse * np.dot(weights, means) + ratio * np.mean((means - np.array(ratios)) ** 2))
