"""What draws from random generators may leave no trace."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from autocompress.task.random_state import generators_of, random_state_kept


def drawn(loader: DataLoader[tuple[torch.Tensor, ...]]) -> list[float]:
    rows = torch.cat([batch[0] for batch in loader]).tolist()
    return [random.random(), float(np.random.rand()), float(torch.rand(())), *rows]  # noqa: NPY002


def loaders() -> list[DataLoader[tuple[torch.Tensor, ...]]]:
    rows = TensorDataset(torch.arange(20.0))
    own = RandomSampler(rows, generator=torch.Generator().manual_seed(3))
    return [
        DataLoader(rows, 5, shuffle=True),
        DataLoader(rows, 5, shuffle=True, generator=torch.Generator().manual_seed(2)),
        DataLoader(rows, 5, sampler=own),
    ]


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("fails", [False, True])
def test_generators_are_as_if_nothing_was_drawn(kind: int, fails: bool) -> None:
    sequences = []
    for between in (False, True):
        loader = loaders()[kind]
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        if between:
            with suppress(ValueError), random_state_kept(*generators_of(loader), device=torch.device("cpu")):
                assert len(set(drawn(loader)) & set(drawn(loader))) == 20
                if fails:
                    raise ValueError
        sequences.append(drawn(loader))
    assert sequences[0] == sequences[1]
