"""Labels as distributions over the classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from frskd_plugin.methods.base import Criterion


def soft_targets(targets: Tensor, logits: Tensor) -> Tensor:
    """A distribution [B, K] for each image, in the dtype of the logits: labels become one-hot, soft labels stay.

    Args:
        targets: labels [B] or soft labels [B, K].
        logits: [B, K], tells the number of classes.

    >>> import torch
    >>> soft_targets(torch.tensor([1, 0]), torch.zeros(2, 3)).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    if targets.ndim == 1:
        targets = F.one_hot(targets, logits.shape[1])
    return targets.to(logits.dtype)


def soft_loss(criterion: Criterion, logits: Tensor, targets: Tensor) -> Tensor:
    """The criterion on soft labels [B, K] that the method has made.

    Raises:
        ValueError: the criterion takes labels only.
    """
    try:
        return criterion(logits, targets)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        name = getattr(criterion, "__name__", type(criterion).__name__)
        raise ValueError(
            f"The method hands soft labels [B, K] to the criterion, and {name} failed on them ({error}): leave "
            f"`criterion` and its smoothing out, or give one for soft labels, such as timm's SoftTargetCrossEntropy()."
        ) from error
