"""Times several functions side by side, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch


def interleaved_medians(steps: Sequence[Callable[[], object]], repeat: int, warmup: int = 2) -> list[float]:
    """Median seconds of each function; they run in turn: first, second, first, second, ...

    Raises:
        ValueError: ``repeat`` is below 1.
    """
    return medians_of_turns([partial(seconds_of, step) for step in steps], repeat, warmup)


def medians_of_turns(turns: Sequence[Callable[[], float]], repeat: int, warmup: int) -> list[float]:
    """Like `interleaved_medians`, of functions that return what they measured: a turn may prepare before it measures.

    Raises:
        ValueError: ``repeat`` is below 1.
    """
    if repeat < 1:
        raise ValueError(f"repeat={repeat} must be at least 1: a median needs a measurement.")
    measured: list[list[float]] = [[] for _ in turns]
    for i in range(warmup + repeat):
        for values, turn in zip(measured, turns, strict=True):
            value = turn()
            if i >= warmup:
                values.append(value)
    return [statistics.median(values) for values in measured]


def seconds_of(step: Callable[[], object]) -> float:
    """Seconds that a call takes, with all that it started on the GPU."""
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
