"""What an examination looks for in a training step, and how it tells what it found."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

NAMES_TOLD = 3


class Fault(Exception):
    """What is wrong with a model; the text says all."""


def check_finite(losses: dict[str, Any]) -> None:
    """Raises: Fault, where a term of the loss is not finite."""
    for name, value in losses.items():
        if "loss" in name and not torch.as_tensor(value).isfinite().all():
            raise Fault(f"{name} is not finite: {value}")


def check_gradients(model: nn.Module, idle: Collection[str] = ()) -> None:
    """Raises: Fault, where a parameter that is trained has no gradient, or one that is not finite.

    Args:
        model: after the backward pass.
        idle: names of parameters that may go without.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    without = [name for name, parameter in trained if parameter.grad is None and name not in idle]
    if without:
        raise Fault(f"{len(without)} parameters get no gradient: {', '.join(without[:NAMES_TOLD])}")
    wild = [name for name, parameter in trained if parameter.grad is not None and not parameter.grad.isfinite().all()]
    if wild:
        raise Fault(f"{len(wild)} parameters get a gradient that is not finite: {', '.join(wild[:NAMES_TOLD])}")
