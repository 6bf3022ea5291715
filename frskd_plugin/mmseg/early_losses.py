"""A decode head's losses with their gradients computed at once, so that the up-sampled logits are not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from frskd_plugin.core.immediate_gradient import differentiate_immediately


@contextmanager
def early_losses(head: nn.Module, wanted: bool = True) -> Iterator[None]:
    """For the length of the block, ``head.loss_by_feat`` keeps nothing but the gradient in the head's own logits.

    mmseg up-samples the logits to the size of the labels, and its losses keep a map of that size for the backward pass.
    Values and gradients are the same without. Left as they are: outputs that are no single tensor, and losses with
    weights of their own to train.

    Args:
        head: a decode head of mmseg.
        wanted: False does nothing.
    """
    has_weights = any(parameter.requires_grad for parameter in loss_parameters(head))
    if not wanted or has_weights:
        yield
        return
    loss_by_feat = head.loss_by_feat

    def early(output: Any, *args: Any) -> dict[str, Tensor]:  # of samples and, in PointRend, of points
        if not isinstance(output, Tensor):
            return loss_by_feat(output, *args)
        return differentiate_immediately(lambda logits: loss_by_feat(logits, *args), output)

    vars(head)["loss_by_feat"] = early
    try:
        yield
    finally:
        del vars(head)["loss_by_feat"]


def loss_parameters(head: nn.Module) -> list[nn.Parameter]:
    """Parameters of a head's loss functions; mmseg's own have none."""
    losses = [module for name, module in head.named_modules() if name.split(".")[0].startswith("loss")]
    return [parameter for module in losses for parameter in module.parameters(recurse=False)]
