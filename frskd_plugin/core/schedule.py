"""Warm-up of the distillation weights (Section 6, "warm-up and annealing"; reference section 9)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sigmoid_rampup(current: float, length: float) -> float:
    """``exp(-5 (1 - t)^2)`` with t = current / length, clipped to 0..1; 1 for a ramp of no length.

    >>> round(sigmoid_rampup(10, 20), 4), sigmoid_rampup(20, 20), sigmoid_rampup(3, 0)
    (0.2865, 1.0, 1.0)
    """
    if length == 0:
        return 1.0
    progress = min(max(current, 0.0), length) / length
    return math.exp(-5.0 * (1.0 - progress) ** 2)


def scheduled_weight(value: float) -> Tensor:
    """Weight of a loss that a schedule changes with ``fill_``: a scalar on the CPU, in float64.

    ``torch.compile`` takes a number for a constant, and compiles anew for each of its values.
    """
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def weighted(loss: Tensor, weight: Tensor) -> Tensor:
    """A scalar loss times a `scheduled_weight`, in the loss's dtype and on its device.

    >>> import torch
    >>> weighted(torch.tensor(3.0), scheduled_weight(0.5))
    tensor(1.5000)
    """
    return loss * weight.to(loss.dtype)


def distill_factor(step: int, begin: int, end: int) -> float:
    """Factor on alpha and beta at a zero-based epoch or iteration: 0 before ``begin``, then a ramp to 1 at ``end``.

    Args:
        step: zero-based epoch or iteration.
        begin: steps of warm-up without distillation (40 in the paper's segmentation).
        end: steps in all (60).

    Raises:
        ValueError: for a ramp that ends before it begins.

    >>> distill_factor(39, 40, 60), round(distill_factor(40, 40, 60), 4), distill_factor(59, 40, 60)
    (0.0, 0.011, 1.0)
    """
    if not 0 <= begin <= end:
        raise ValueError(f"The warm-up must have 0 <= begin <= end, got begin={begin} and end={end}.")
    return 0.0 if step < begin else sigmoid_rampup(step + 1 - begin, end - begin)
