"""Attention maps and their transfer, the paper's feature loss (Eq. 3; reference section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.checks import check_one_of
from frskd_plugin.core.soft_label import LOSS_VARIANTS

MAP_EPS = 1e-12
REDUCTIONS = ("mean", "batchmean")


def attention_map(feat: Tensor) -> Tensor:
    """Channel mean of the squares, normalised to unit L2 norm over the positions (phi of Eq. 3).

    Computed in float32 at least, so that half-precision maps cannot overflow. A map of zeros stays zero, and so does
    its gradient.

    Args:
        feat: [B, C, H, W].

    >>> import torch
    >>> attention_map(torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])).tolist()
    [[0.0, 1.0, 0.0, 0.0]]
    """
    with torch.autocast(feat.device.type, enabled=False):
        dtype = torch.promote_types(feat.dtype, torch.float32)
        # a norm, squared: it reduces in `dtype` without ever holding the squares of the whole map
        pooled = torch.linalg.vector_norm(feat, dim=1, dtype=dtype).square() / feat.shape[1]
        return F.normalize(pooled.flatten(1), dim=1, eps=MAP_EPS)


def attention_transfer_loss(
    feat: Tensor, refined_feat: Tensor, variant: str = "published", reduction: str = "mean"
) -> Tensor:
    """Distance of the attention maps of one level; the refined map is a constant.

    'published': mean over batch and positions of the squared difference. 'equations': L2 norm of the difference, mean
    over the batch.

    An attention map has unit norm whatever its size, so that the squared differences of a map sum up to at most 2. The
    'published' mean over H x W positions therefore falls with 1 / (H W): beta weighs less on larger images, and within
    one network less on the levels of high resolution. ``reduction='batchmean'`` takes the sum over the positions and
    the mean over the batch, as ``torch.nn.functional.kl_div`` uses the word; it does not depend on the resolution. A
    level is then H W times larger, and ``beta / (H W)``, with the level's size at the resolution that beta was tuned
    for, weighs it as before. Levels have different sizes, so one beta cannot do that for all of them: the factors are
    those of `AttentionTransferLoss.levels`, 1 / (H_i W_i) each. 'equations' is a norm of each map and has no mean over
    the positions: both reductions are the same there.

    Args:
        feat: the student's map [B, C, H, W].
        refined_feat: the self-teacher's map [B, D, H, W]; gets no gradient.
        variant: 'published' or 'equations'.
        reduction: of 'published': 'mean' (the authors' code) or 'batchmean' (independent of the resolution).

    Raises:
        ValueError: if batch or size differ.

    >>> import torch
    >>> one, other = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[5.0, 0.0]]]])
    >>> attention_transfer_loss(one, other).item(), round(attention_transfer_loss(one, other, "equations").item(), 4)
    (1.0, 1.4142)
    >>> attention_transfer_loss(one, other, reduction="batchmean").item()
    2.0
    """
    if feat.ndim != 4 or feat.shape[0] != refined_feat.shape[0] or feat.shape[2:] != refined_feat.shape[2:]:
        raise ValueError(
            "Attention maps are compared position by position: the student's map [B, C, H, W] and the refined map must "
            f"agree in B, H and W, got {list(feat.shape)} and {list(refined_feat.shape)}."
        )
    with torch.no_grad():
        target = attention_map(refined_feat)
    difference = attention_map(feat) - target
    if variant == "equations":
        # vector_norm has gradient 0 where the maps agree
        return torch.linalg.vector_norm(difference, dim=1).mean()
    squared = difference.square()
    return squared.sum(dim=1).mean() if reduction == "batchmean" else squared.mean()


class AttentionTransferLoss(nn.Module):
    """Sum of `attention_transfer_loss` over the levels.

    Args:
        variant: 'published' or 'equations'.
        reduction: of 'published': 'mean' (the authors' code, which their beta belongs to) or 'batchmean', which does
            not depend on the resolution; beta is then ``beta / (H W)``, see `attention_transfer_loss`.

    Raises:
        ValueError: for an unknown variant or reduction.
    """

    def __init__(self, variant: str = "published", reduction: str = "mean") -> None:
        super().__init__()
        self.variant = check_one_of("variant", variant, LOSS_VARIANTS)
        self.reduction = check_one_of("reduction", reduction, REDUCTIONS)

    def forward(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, H_i, W_i] and [B, D_i, H_i, W_i] -> scalar.

        Raises:
            ValueError: if the numbers of levels differ.
        """
        return torch.stack(self.levels(feats, refined_feats)).sum()

    def levels(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> list[Tensor]:
        """The loss of each level, a scalar each."""
        check_same_levels(feats, refined_feats)
        return [
            attention_transfer_loss(feat, refined_feat, self.variant, self.reduction)
            for feat, refined_feat in zip(feats, refined_feats, strict=True)
        ]


def check_same_levels(feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> None:
    """Refuse lists of different length.

    Raises:
        ValueError: if student and teacher do not hand out the same number of levels.
    """
    if len(feats) != len(refined_feats) or not feats:
        raise ValueError(
            f"Student and self-teacher must hand out the same levels, got {len(feats)} and {len(refined_feats)} maps."
        )
