"""Batches of random numbers as a training method asks for them, so that no data set is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frskd_plugin.methods.base import DataNeeds


def classification_batch(
    needs: DataNeeds, batch: int, input_size: Sequence[int], num_classes: int, device: str
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Images, labels, and what the method is given beside them.

    Args:
        needs: of the method.
        batch: images that are new in a step, as a loader's ``batch_size`` counts them; with partners of a class, or an
            overlap with the batch before, the batch B holds twice as many.
        input_size: channels, height and width.
        num_classes: labels are drawn below it.
        device: of the tensors.

    Returns:
        images [B, C, H, W], or [B, views, C, H, W]; labels [B]; ``index`` [B] where the method asks for it.

    >>> images, labels, extra = classification_batch(DataNeeds(order="class_pairs"), 3, (3, 8, 8), 10, "cpu")
    >>> images.shape, labels[:3].equal(labels[3:]), extra
    (torch.Size([6, 3, 8, 8]), True, {})
    """
    labels = torch.randint(num_classes, (batch,), device=device)
    if needs.order != "any":  # both orders have the labels of one half in the other
        labels = labels.repeat(2)
    views = (needs.views,) if needs.views > 1 else ()
    images = torch.randn(len(labels), *views, *input_size, device=device)
    return images, labels, {"index": torch.arange(len(labels), device=device)} if needs.index else {}
