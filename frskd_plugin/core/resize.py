"""Size and layout of feature maps: Resize of Eq. 2 (reference section 1: UP and POOL)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def fast_layout(feat: Tensor) -> Tensor:
    """The map in the layout in which 1x1 and depthwise convolutions are fast.

    On a CPU that is channels_last: the self-teacher takes about two thirds of the time, conversion included. Elsewhere
    the map stays as the caller chose.

    Args:
        feat: map [B, C, H, W].
    """
    return feat.contiguous(memory_format=torch.channels_last) if feat.device.type == "cpu" else feat


def common_layout(feats: Sequence[Tensor]) -> torch.memory_format:
    """channels_last where all maps [B, C, H, W] have it and one of them is not in the ordinary layout too.

    >>> common_layout([torch.rand(1, 2, 3, 3)])
    torch.contiguous_format
    """
    channels_last = all(feat.is_contiguous(memory_format=torch.channels_last) for feat in feats)
    ordinary = all(feat.is_contiguous() for feat in feats)  # a map of 1 x 1 has both
    return torch.channels_last if channels_last and not ordinary else torch.contiguous_format


def spatial_size(feat: Tensor) -> Size:
    """Height and width of a map [B, C, H, W]."""
    return feat.shape[-2], feat.shape[-1]


def max_pool_to(feat: Tensor, size: Size) -> Tensor:
    """Down-sample a map by max-pooling to exactly ``size``.

    A halving, of an even or an odd size, is a 3x3 pooling with stride 2 and TensorFlow's "same" padding; other ratios
    pool adaptively. Padding acts as -inf, which equals zero padding on rectified maps.

    Args:
        feat: map [B, C, H, W].
        size: height and width of the result.

    >>> import torch
    >>> max_pool_to(torch.arange(16.0).view(1, 1, 4, 4), (2, 2)).flatten().tolist()
    [10.0, 11.0, 14.0, 15.0]
    """
    height, width = spatial_size(feat)
    if (height, width) == size:
        return feat
    if size == ((height + 1) // 2, (width + 1) // 2):
        # even: nothing above, one row below, which ceil_mode does without a padded copy; odd: one row on each side
        return F.max_pool2d(feat, 3, stride=2, padding=(height % 2, width % 2), ceil_mode=True)
    return F.adaptive_max_pool2d(feat, size)


def upsample_to(feat: Tensor, size: Size, mode: str) -> Tensor:
    """Up-sample a map [B, C, H, W] to ``size`` with ``mode`` 'nearest' or 'bilinear' (half-pixel centres).

    A target that is smaller in an axis (levels handed in out of order) is max-pooled instead.

    Returns:
        The map [B, C, *size]; ``feat`` itself where it has that size.
    """
    height, width = spatial_size(feat)
    if (height, width) == size:
        return feat
    if size[0] < height or size[1] < width:
        return max_pool_to(feat, size)
    if mode == "nearest":
        return F.interpolate(feat, size, mode="nearest")
    return F.interpolate(feat, size, mode=mode, align_corners=False)


def resize_bilinear(feat: Tensor, size: Size, align_corners: bool) -> Tensor:
    """A map [B, C, h, w] at ``size``, bilinear, up or down, as segmentation resizes its logits."""
    return F.interpolate(feat, size, mode="bilinear", align_corners=align_corners)


def subsample_to(feat: Tensor, size: Size) -> Tensor:
    """Down-sample by taking the nearest value, ``y[i, j] = x[2i, 2j]`` for a halving (reference section 9, SUB)."""
    return feat if spatial_size(feat) == size else F.interpolate(feat, size, mode="nearest")
