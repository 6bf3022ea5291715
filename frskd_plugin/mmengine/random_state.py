"""Random states of python, numpy and torch that follow from numbers, not from what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seeds(*keys: int) -> tuple[int, int, int]:
    """Three independent seeds of 32 bits (python, numpy, torch) that depend on every key and on their order.

    Raises:
        ValueError: a key is negative.

    Example:
        >>> derive_seeds(0, 1) == derive_seeds(0, 1)
        True
        >>> derive_seeds(0, 1) == derive_seeds(1, 0)
        False
    """
    if any(key < 0 for key in keys):
        raise ValueError(f"random seeds must not be negative, got {keys}; give a seed >= 0")
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(keys).generate_state(3).tolist()
    return python_seed, numpy_seed, torch_seed


@contextmanager
def seeded(*keys: int) -> Iterator[None]:
    """Run a block with the random states of python, numpy and torch (CPU) that belong to `keys`; restore them after it.

    Only torch's CPU generator is touched: samples are made on the CPU, and a forked worker must not call CUDA.

    Example:
        >>> with seeded(3, 1):
        ...     first = random.random()
        >>> with seeded(3, 1):
        ...     first == random.random()
        True
    """
    python_seed, numpy_seed, torch_seed = derive_seeds(*keys)
    outer_python, outer_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(python_seed)
            np.random.seed(numpy_seed)
            torch.default_generator.manual_seed(torch_seed)
            yield
        finally:
            random.setstate(outer_python)
            np.random.set_state(outer_numpy)
