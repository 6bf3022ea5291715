"""The self-teacher of a classifier: refined maps and their own classifier (Section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck


class SelfTeacher(nn.Module):
    """`SelfTeacherNeck` with a fully connected layer on the average-pooled last map.

    Args:
        in_channels: channels of the student's maps, level 0 = highest resolution.
        num_classes: number of classes.
        width: see `SelfTeacherNeck`.
        neck: its other settings; with ``preactivation`` the logits are the same.

    >>> import torch
    >>> teacher = SelfTeacher([8, 16], num_classes=10)
    >>> refined_feats, logits = teacher([torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2)])
    >>> [tuple(feat.shape) for feat in refined_feats], tuple(logits.shape)
    ([(2, 16, 4, 4), (2, 32, 2, 2)], (2, 10))
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, width: int = 2, **neck: Any) -> None:
        super().__init__()
        self.neck = SelfTeacherNeck(in_channels, width, **neck)
        self.head = nn.Linear(self.neck.out_channels[-1], check_positive_int("num_classes", num_classes))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by one of ``num_classes``, on the same device and in the same dtype."""
        check_positive_int("num_classes", num_classes)
        self.head = nn.Linear(self.head.in_features, num_classes).to(self.head.weight)

    def forward(self, feats: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Maps [B, c_i, H_i, W_i] -> as many refined maps [B, d_i, H_i, W_i] and logits [B, num_classes]."""
        refined_feats = self.neck(feats)
        last = F.relu(refined_feats[-1]) if self.neck.preactivation else refined_feats[-1]
        return refined_feats, self.head(last.mean(dim=(2, 3)))
