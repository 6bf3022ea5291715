"""Overhaul distillation (Heo et al. 2019) as feature loss, Table 5 (reference section 4, "od")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from frskd_plugin.core.attention import check_same_levels
from frskd_plugin.core.checks import check_feats, check_one_of
from frskd_plugin.core.hint import check_regressor_channels, init_regressor

MARGIN_FORMS = ("published", "current")


def overhaul_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of the negative part of N(bias, weight^2), a channel each; ``-3 |weight|`` where that part is too small.

    Args:
        weight: scale of the batch normalisation, shape [C].
        bias: shift of the batch normalisation, shape [C].

    >>> import torch
    >>> round(overhaul_margin(torch.ones(1), torch.zeros(1)).item(), 5)
    -0.79788
    """
    std = weight.detach().abs().double()
    mean = bias.detach().double()
    ratio = mean / std
    negative_share = torch.special.ndtr(-ratio)
    expected = mean - std * torch.exp(-0.5 * ratio.square()) / (negative_share * (2 * torch.pi) ** 0.5)
    return torch.where(negative_share > 0.001, expected, -3 * std).to(weight.dtype)


def overhaul_loss(regressed: Tensor, refined_feat: Tensor, margin: Tensor) -> Tensor:
    """Partial L2 distance of one level, summed over elements, mean over the batch.

    Args:
        regressed: regressed student map [B, D, H, W].
        refined_feat: the self-teacher's pre-activation [B, D, H, W]; gets no gradient.
        margin: [D], see `overhaul_margin`.

    >>> import torch
    >>> student, teacher = torch.tensor([-2.0, 1.0]).view(1, 2, 1, 1), torch.tensor([-9.0, 3.0]).view(1, 2, 1, 1)
    >>> overhaul_loss(student, teacher, torch.tensor([-1.0, -1.0])).item()
    4.0
    """
    target = torch.maximum(refined_feat.detach(), margin.view(1, -1, 1, 1))
    counted = (regressed > target) | (target > 0)
    return ((regressed - target).square() * counted).sum() / regressed.shape[0]


class OverhaulLoss(nn.Module):
    """Overhaul distillation between pre-activations; level i of n weighs ``2^-(n-1-i)``.

    Args:
        in_channels: channels of the student's maps.
        norms: the batch normalisation behind each refined map (`SelfTeacherNeck.output_norms`).
        margins: 'published' freezes the margins when the loss is built, as the authors' code does; 'current' reads them
            from ``norms`` at each step.

    Raises:
        ValueError: if ``in_channels`` and ``norms`` differ in length.
    """

    def __init__(self, in_channels: Sequence[int], norms: Sequence[nn.Module], margins: str = "published") -> None:
        super().__init__()
        refined_channels = [norm.num_features for norm in norms]
        self.in_channels, self.refined_channels = check_regressor_channels(in_channels, refined_channels)  # type: ignore
        self.margins = check_one_of("margins", margins, MARGIN_FORMS)
        # they belong to the self-teacher: a tuple hides them from nn.Module
        self.norms = tuple(norms) if self.margins == "current" else ()
        self.regressors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, d, 1, bias=False), nn.BatchNorm2d(d))
            for c, d in zip(self.in_channels, self.refined_channels, strict=True)
        )
        for regressor in self.regressors:
            init_regressor(regressor[0])
        for level, norm in enumerate(norms):
            self.register_buffer(f"margin{level}", overhaul_margin(norm.weight, norm.bias))

    def level_margins(self) -> list[Tensor]:
        """The margins in force, [D_i] each."""
        if self.margins == "current":
            return [overhaul_margin(norm.weight, norm.bias) for norm in self.norms]
        return [getattr(self, f"margin{level}") for level in range(len(self.regressors))]

    def forward(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> Tensor:
        """Pre-activations [B, c_i, H_i, W_i] and [B, d_i, H_i, W_i] (no gradient) -> scalar.

        Raises:
            ValueError: if maps disagree with the channels given.
        """
        levels = self.levels(feats, refined_feats)
        top = len(levels) - 1
        return torch.stack([loss / 2 ** (top - i) for i, loss in enumerate(levels)]).sum()

    def levels(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> list[Tensor]:
        """The unweighted loss of each level, a scalar each."""
        check_same_levels(feats, refined_feats)
        check_feats(feats, self.in_channels, type(self).__name__)
        regressed = [regressor(feat) for regressor, feat in zip(self.regressors, feats, strict=True)]
        margins = self.level_margins()
        return [overhaul_loss(r, g, m) for r, g, m in zip(regressed, refined_feats, margins, strict=True)]
