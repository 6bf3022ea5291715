"""Hint regression (FitNet) as feature loss, Table 5 (reference section 4, "fit")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.attention import check_same_levels
from frskd_plugin.core.blocks import ConvBNReLU
from frskd_plugin.core.checks import check_feats, check_in_channels


def init_regressor(conv: nn.Conv2d) -> None:
    """Initial values N(0, 2 / C_out) of a 1x1 regressor (reference section 11)."""
    nn.init.normal_(conv.weight, std=(2.0 / conv.out_channels) ** 0.5)


def check_regressor_channels(
    in_channels: Sequence[int], refined_channels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Both channel lists, checked.

    Raises:
        ValueError: if they do not name the same number of levels.
    """
    student, teacher = check_in_channels(in_channels, 1), check_in_channels(refined_channels, 1)
    if len(student) != len(teacher):
        raise ValueError(f"Student and self-teacher must have the same levels, got channels {student} and {teacher}.")
    return student, teacher


class HintLoss(nn.Module):
    """Mean squared error between regressed student maps ``relu(BN(conv1x1(f)))`` and refined maps, summed over levels.

    Args:
        in_channels: channels of the student's maps.
        refined_channels: channels of the refined maps (`SelfTeacherNeck.out_channels`).

    Raises:
        ValueError: if the two lists differ in length.
    """

    def __init__(self, in_channels: Sequence[int], refined_channels: Sequence[int]) -> None:
        super().__init__()
        self.in_channels, self.refined_channels = check_regressor_channels(in_channels, refined_channels)
        self.regressors = nn.ModuleList(
            ConvBNReLU(c, d) for c, d in zip(self.in_channels, self.refined_channels, strict=True)
        )
        for regressor in self.regressors:
            init_regressor(regressor.conv)

    def forward(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> Tensor:
        """Maps [B, c_i, H_i, W_i] and [B, d_i, H_i, W_i] (no gradient) -> scalar.

        Raises:
            ValueError: if maps disagree with the channels given.
        """
        return torch.stack(self.levels(feats, refined_feats)).sum()

    def levels(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> list[Tensor]:
        """The loss of each level, a scalar each."""
        check_same_levels(feats, refined_feats)
        check_feats(feats, self.in_channels, type(self).__name__)
        regressed = [regressor(feat) for regressor, feat in zip(self.regressors, feats, strict=True)]
        return [F.mse_loss(r, g.detach()) for r, g in zip(regressed, refined_feats, strict=True)]
