"""Times several functions side by side, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def interleaved_medians(steps: Sequence[Callable[[], object]], repeat: int, warmup: int = 2) -> list[float]:
    """Median seconds of each function; they run in turn: first, second, first, second, ...

    Raises:
        ValueError: ``repeat`` is below 1.
    """
    if repeat < 1:
        raise ValueError(f"repeat={repeat} must be at least 1: a median needs a measurement.")
    seconds: list[list[float]] = [[] for _ in steps]
    for i in range(warmup + repeat):
        for measured, step in zip(seconds, steps, strict=True):
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if i >= warmup:
                measured.append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in seconds]


def synchronize() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
