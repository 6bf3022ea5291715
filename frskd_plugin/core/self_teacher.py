"""The self-teacher of a classifier: refined maps and their own classifier (Section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.core.self_teacher_neck import SelfTeacherNeck


class SelfTeacher(nn.Module):
    """`SelfTeacherNeck` with a fully connected layer on the average-pooled last map.

    Args:
        in_channels: channels of the student's maps, level 0 = highest resolution.
        num_classes: number of classes.
        width: see `SelfTeacherNeck`, like all that follow.
        channels: 'scaled' (BiFPNc) or the channels of a constant-width BiFPN.
        depth: separable convolutions a node.
        repeat: number of layers.
        variant: 'published' or 'equations'.
        preactivation: hand out the maps before ReLU; the logits are the same.
        rectify_input: see `SelfTeacherNeck`.
        max_channels: see `SelfTeacherNeck`.
        checkpoint: see `SelfTeacherNeck`.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range.

    >>> import torch
    >>> teacher = SelfTeacher([8, 16], num_classes=10)
    >>> refined_feats, logits = teacher([torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2)])
    >>> [tuple(feat.shape) for feat in refined_feats], tuple(logits.shape)
    ([(2, 16, 4, 4), (2, 32, 2, 2)], (2, 10))
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        width: int = 2,
        channels: str | int = "scaled",
        depth: int | None = None,
        repeat: int = 1,
        variant: str = "published",
        preactivation: bool = False,
        rectify_input: bool = True,
        max_channels: int | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.neck = SelfTeacherNeck(
            in_channels,
            width,
            channels,
            depth=depth,
            repeat=repeat,
            variant=variant,
            preactivation=preactivation,
            rectify_input=rectify_input,
            max_channels=max_channels,
            checkpoint=checkpoint,
        )
        self.head = nn.Linear(self.neck.out_channels[-1], check_positive_int("num_classes", num_classes))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by one of ``num_classes``, on the same device and in the same dtype."""
        weight = self.head.weight
        self.head = nn.Linear(
            self.head.in_features,
            check_positive_int("num_classes", num_classes),
            device=weight.device,
            dtype=weight.dtype,
        )

    def forward(self, feats: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Maps [B, c_i, H_i, W_i] -> as many refined maps [B, d_i, H_i, W_i] and logits [B, num_classes].

        Raises:
            ValueError: if the maps disagree with ``in_channels``.
        """
        refined_feats = self.neck(feats)
        last = F.relu(refined_feats[-1]) if self.neck.preactivation else refined_feats[-1]
        return refined_feats, self.head(last.mean(dim=(2, 3)))
