"""Random generators, left as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from autocompress.task.first_batches import FirstBatches


def generators_of(batches: Any) -> list[torch.Generator]:
    """Generators of its own that a loader draws from: the loader's, its sampler's."""
    batches = batches.batches if isinstance(batches, FirstBatches) else batches
    owners = (batches, getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None))
    held = {id(own): own for own in (getattr(owner, "generator", None) for owner in owners)}
    return [own for own in held.values() if isinstance(own, torch.Generator)]


@contextmanager
def random_state_kept(*generators: torch.Generator, device: torch.device | None = None) -> Iterator[None]:
    """Let what runs inside draw from Python's, NumPy's and PyTorch's generators, without a trace.

    Args:
        generators: others that are set back too.
        device: whose own generator is set back too; None is the CPU.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (users' code draws from it)
    states = [generator.get_state() for generator in generators]
    with ExitStack() as forks:
        forks.enter_context(torch.random.fork_rng(devices=[]))
        if device is not None and device.index is not None:
            forks.enter_context(torch.random.fork_rng([device.index], device_type=device.type))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


@contextmanager
def seeded(*generators: torch.Generator, seed: int = 0) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's generators start from a seed inside, and go on afterwards as if nothing
    had been drawn.

    Args:
        generators: others that do so too.
        seed: of all of them.
    """
    with random_state_kept(*generators):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (users' code draws from it)
        for generator in (torch.default_generator, *generators):
            generator.manual_seed(seed)
        yield
