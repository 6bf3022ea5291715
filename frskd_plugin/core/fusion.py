"""Fast normalized fusion of feature maps (Section 3.1; EfficientDet, Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

FUSION_EPS = 1e-6


def fusion_coefficients(weights: Tensor, eps: float = FUSION_EPS) -> Tensor:
    """``relu(w) / (sum relu(w) + eps)``, the non-negative coefficients of a fusion.

    Args:
        weights: one scalar per map, shape [M].
        eps: keeps the quotient finite when all weights are clipped.

    >>> import torch
    >>> fusion_coefficients(torch.tensor([3.0, 1.0, -5.0]), eps=0.0).tolist()
    [0.75, 0.25, 0.0]
    """
    positive = weights.relu()
    return positive / (positive.sum() + eps)


def fast_normalized_fusion(weights: Tensor, feats: Sequence[Tensor], eps: float = FUSION_EPS) -> Tensor:
    """Weighted mean of maps of one shape, differentiable in the maps and in the weights.

    Args:
        weights: one scalar per map, shape [M]; negative ones are clipped and get no gradient.
        feats: M maps [B, C, H, W].
        eps: see `fusion_coefficients`.

    >>> import torch
    >>> maps = [torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 4.0)]
    >>> fast_normalized_fusion(torch.ones(2), maps, eps=0.0).item()
    3.0
    """
    first, *others = fusion_coefficients(weights, eps)
    fused = feats[0] * first
    for coefficient, feat in zip(others, feats[1:], strict=True):
        fused = fused + feat * coefficient
    return fused
