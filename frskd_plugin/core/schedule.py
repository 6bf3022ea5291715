"""Weights of losses that change in the course of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def sigmoid_rampup(current: float, length: float) -> float:
    """``exp(-5 (1 - t)^2)`` with t = current / length, clipped to 0..1; 1 for a ramp of no length.

    >>> round(sigmoid_rampup(10, 20), 4), sigmoid_rampup(20, 20), sigmoid_rampup(3, 0)
    (0.2865, 1.0, 1.0)
    """
    if length == 0:
        return 1.0
    progress = min(max(current, 0.0), length) / length
    return math.exp(-5.0 * (1.0 - progress) ** 2)


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


class ScheduledWeight(nn.Module):
    """Scalar that a training changes from outside, such as the weight of a loss.

    The number lies in a buffer on the model's device, which `set` changes in place: ``torch.compile`` does not compile
    anew, a captured CUDA graph reads the new number, and nothing waits for the device. It is no part of a checkpoint.

    Attributes:
        value: the number.
        on: True while it is above 0; a forward pass that leaves out what weighs nothing asks this.
        tensor: the number as a scalar tensor, float64 whatever the model's dtype (float32 on devices without it).

    >>> weight = ScheduledWeight(0.5)
    >>> weight(torch.tensor(3.0))
    tensor(1.5000)
    """

    tensor: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("tensor", torch.zeros((), dtype=torch.float64, device="cpu"), persistent=False)
        self.set(value)

    def set(self, value: float) -> None:
        """Change the number."""
        self.value, self.on = float(value), value > 0
        self.tensor.fill_(value)

    def forward(self, loss: Tensor) -> Tensor:
        """Return a scalar loss times the weight, in the loss's dtype."""
        # like a Python number, it does not round to half precision before the product
        dtype = torch.promote_types(loss.dtype, torch.float32)
        return (loss * self.tensor.to(dtype)).to(loss.dtype)

    def extra_repr(self) -> str:
        """Show the number."""
        return f"{self.value:g}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScheduledWeight:
        # a new device, but never a new dtype: `half()` would round the weight
        device = moved_to(fn, self.tensor)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        if device != self.tensor.device:
            self.tensor = torch.full((), self.value, dtype=dtype, device=device)
        return self


def moved_to(fn: Callable[[Any], Tensor], tensor: Tensor) -> torch.device:
    """Return the device that ``fn`` of `torch.nn.Module._apply` takes a tensor to."""
    return fn(torch.zeros((), dtype=torch.float32, device=tensor.device)).device
