"""The class scores of a dense head in the layout of the soft-label losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_logits(cls_scores: Sequence[Tensor], num_classes: int) -> Tensor:
    """Class scores of all levels, in mmdet's layout, as one tensor [B, K, N] over the N anchors of all levels.

    Args:
        cls_scores: [B, A * K, H_i, W_i] a level; the K scores of an anchor stand together.
        num_classes: K, with the background where the head has a class for it (``cls_out_channels``).

    >>> import torch
    >>> class_logits([torch.zeros(2, 9 * 20, 4, 4), torch.zeros(2, 9 * 20, 2, 2)], num_classes=20).shape
    torch.Size([2, 20, 180])
    """
    levels = [scores.unflatten(1, (-1, num_classes)).transpose(1, 2).flatten(2) for scores in cls_scores]
    return torch.cat(levels, dim=2)
