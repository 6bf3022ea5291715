"""Compute a loss and its gradient at once, so that what the loss was made of need not be kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (grad_output * gradient).to(ctx.dtype), None, None


def with_known_gradient(x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Return the scalar ``value`` with ``gradient`` as its gradient in ``x``; it can be differentiated once."""
    return _KnownGradient.apply(x, value.detach(), gradient.detach())


def differentiate_immediately(function: Callable[[Tensor], dict[str, Tensor]], x: Tensor) -> dict[str, Tensor]:
    """Return ``function(x)`` with the gradient of each scalar computed at once, so that ``function`` keeps nothing.

    Values, gradients in ``x`` and time are the same as without. ``function`` gives named tensors, and a gradient to
    ``x`` alone, no weights of its own. It sees float32 at least, because its gradients are not scaled as those of a
    whole loss in float16 are.

    Raises:
        ValueError: a result that has a gradient is not a scalar.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return function(x)
    leaf = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
    found = function(leaf)
    differentiable = [name for name, value in found.items() if value.requires_grad]
    for name in differentiable:
        if found[name].numel() != 1:
            raise ValueError(
                f"differentiate_immediately takes the gradients of scalars, got {name!r} of shape "
                f"{list(found[name].shape)}. Let the loss be reduced (reduction='mean')."
            )
    made = {name: value.detach() for name, value in found.items()}
    for name in differentiable:
        (gradient,) = torch.autograd.grad(found.pop(name), leaf, retain_graph=name != differentiable[-1])
        made[name] = with_known_gradient(x, made[name], gradient)
    return made
