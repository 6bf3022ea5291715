"""Weights of losses that change in the course of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from frskd_plugin.core.checks import check_share


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

    The paper's segmentation has ``begin=40`` and ``end=60`` epochs.

    >>> distill_factor(39, 40, 60), round(distill_factor(40, 40, 60), 4), distill_factor(59, 40, 60)
    (0.0, 0.011, 1.0)
    """
    if not 0 <= begin <= end:
        raise ValueError(f"The warm-up must have 0 <= begin <= end, got begin={begin} and end={end}.")
    return 0.0 if step < begin else sigmoid_rampup(step + 1 - begin, end - begin)


SCHEDULES = ("constant", "linear", "rampup", "gate")


def scheduled_factor(schedule: str, warmup: float, progress: float) -> float:
    """Return the factor on the distillation at a share of the training: 0 before ``warmup``, then as scheduled.

    'linear' and 'rampup' (``exp(-5 (1 - t)^2)``) grow over all that follows the warm-up, to 1 at the end of the
    training; the others are 1 there. ``warmup`` and ``progress`` are shares of the training.

    >>> [scheduled_factor("linear", 0.5, done) for done in (0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 0.5, 1.0]
    """
    progress = min(progress, 1.0)
    if progress < warmup:
        return 0.0
    if schedule == "rampup":
        return sigmoid_rampup(progress - warmup, 1 - warmup)
    return (progress - warmup) / (1 - warmup) if schedule == "linear" and warmup < 1 else 1.0


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
        self.value, self.on = float(value), value > 0
        self.tensor.fill_(value)

    def now(self, dtype: torch.dtype) -> Tensor:
        """Return the number as a scalar of its own, so that `set` changes nothing for a backward pass that keeps it."""
        return self.tensor.to(dtype, copy=True)

    def forward(self, loss: Tensor) -> Tensor:
        # like a Python number, it does not round to half precision before the product
        dtype = torch.promote_types(loss.dtype, torch.float32)
        return (loss * self.now(dtype)).to(loss.dtype)

    def extra_repr(self) -> str:
        return f"{self.value:g}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScheduledWeight:
        # a new device, but never a new dtype: `half()` would round the weight
        device = moved_to(fn, self.tensor)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        if device != self.tensor.device:
            self.tensor = torch.full((), self.value, dtype=dtype, device=device)
        return self


class TrunkGradient(nn.Module):
    """Scale the gradient that a self-teacher's own losses send into the student's maps; an extension of the paper.

    The paper has a share of 1. Early in a training that gradient takes the student's layers for the self-teacher, so
    the share may grow with the training. It is no part of a checkpoint.

    Args:
        share: 0..1, or 'linear': the share of the training that is done, as `set_progress` tells it; 0.3 in a loop that
            tells nothing.

    Raises:
        ValueError: for what is no share.

    >>> x = torch.ones(2, requires_grad=True)
    >>> (same,) = TrunkGradient(0.25)([3 * x])
    >>> same.sum().backward()
    >>> same.tolist(), x.grad
    ([3.0, 3.0], tensor([0.7500, 0.7500]))
    """

    UNTOLD = 0.3

    def __init__(self, share: float | str) -> None:
        super().__init__()
        if isinstance(share, str) and share != "linear":
            raise ValueError(f"`trunk_gradient` must be a share in 0..1 or 'linear', got {share!r}.")
        self.share = share if isinstance(share, str) else check_share("trunk_gradient", share, "a gradient")
        self.weight = ScheduledWeight(self.UNTOLD if isinstance(self.share, str) else self.share)

    def set_progress(self, step: float, total: float) -> None:
        """Set the share of 'linear' for epochs or steps trained so far, and in all."""
        if self.share == "linear":
            self.weight.set(min(max(step / total, 0.0), 1.0))

    def forward(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """Return the same maps, whose gradient is multiplied by the share on its way back."""
        if self.share == 1:
            return list(feats)
        return [torch.lerp(feat.detach(), feat, self.weight.now(feat.dtype)) for feat in feats]


class Gate(nn.Module):
    """Weight in 0..1 that grows with the lead of the self-teacher over the student; an extension of the paper.

    ``clip(m, 0, 1)`` of the moving average m of loss(student) - loss(self-teacher), from 0 on. Train mode updates m in
    place, as batch normalisation does its statistics: with the mean over all processes, and not with a lead that is
    infinite or NaN. It is part of a checkpoint, so a resumed run goes on exactly.

    Attributes:
        mean: m, a scalar in float32 whatever the model's dtype.

    >>> gate = Gate()
    >>> for _ in range(2):
    ...     weight = gate(student_loss=torch.tensor(5.0), teacher_loss=torch.tensor(3.0))
    >>> round(weight.item(), 4), gate.eval()(torch.tensor(0.0), torch.tensor(9.0)) == weight
    (0.195, tensor(True))
    """

    MOMENTUM = 0.95

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float32, device="cpu"))

    def forward(self, student_loss: Tensor, teacher_loss: Tensor) -> Tensor:
        """Return the weight, without a gradient, in train mode after the update; both losses are scalars."""
        if self.training:
            lead = mean_over_processes(student_loss.detach() - teacher_loss.detach()).to(self.mean.dtype)
            self.mean.copy_(torch.where(lead.isfinite(), self.mean.lerp(lead, 1 - self.MOMENTUM), self.mean))
        return self.mean.clamp(0, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        # `half()` would lose what a step of 0.05 adds; a model built without memory starts at 0
        device = moved_to(fn, self.mean)
        self.mean = torch.zeros_like(self.mean, device=device) if self.mean.is_meta else self.mean.to(device)
        return self


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes that train together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    distributed.all_reduce(value)
    return value / distributed.get_world_size()


def moved_to(fn: Callable[[Any], Tensor], tensor: Tensor) -> torch.device:
    """Return the device that ``fn`` of `torch.nn.Module._apply` takes a tensor to."""
    return fn(torch.zeros((), dtype=torch.float32, device=tensor.device)).device
