"""Accuracy against scikit-learn's."""

from __future__ import annotations

import torch
from sklearn.metrics import accuracy_score

from autocompress.metrics.accuracy import accuracy


def test_accuracy_equals_scikit_learns() -> None:
    outputs = torch.randn(301, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 7, (301,), generator=torch.Generator().manual_seed(1))
    assert accuracy(outputs, targets) == accuracy_score(targets, outputs.argmax(1))
