"""Building blocks of the self-teacher (reference section 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.fusion import fusion_coefficients
from frskd_plugin.core.resize import Size, max_pool_to, spatial_size, upsample_to

EQUAL_REPEATS = (1, 2, 4, 8, 16, 32)


def batch_norm(bn: nn.Module, x: Tensor, repeats: float = 1.0, scale: Tensor | None = None) -> Tensor:
    """``scale * BN(x)``, with the running statistics of a map that repeats each value of ``x``.

    The scale goes into the layer's affine parameters, a vector each, and so costs no pass over the map. Repeating
    values changes neither their mean nor their biased variance; only the unbiased variance that goes into the running
    statistics depends on the count.

    Args:
        bn: an ``nn.BatchNorm2d``, or what SyncBN conversion made of it.
        x: [B, C, H, W].
        repeats: how often each value counts, >= 1.
        scale: a scalar, or one for each channel, [C].
    """
    replaced = {} if scale is None else {"weight": bn.weight * scale, "bias": bn.bias * scale}
    counts_repeats = bn.training and bn.track_running_stats and repeats != 1
    if counts_repeats:
        # The layer writes this batch's part, momentum * unbiased variance, into zeros: there it is rescaled.
        replaced["running_var"] = torch.zeros_like(bn.running_var)
    y = torch.func.functional_call(bn, replaced, (x,)) if replaced else bn(x)
    if counts_repeats:
        _count_repeats(bn, replaced["running_var"], x.numel() // x.shape[1], repeats)
    return y


@torch.no_grad()
def _count_repeats(bn: nn.Module, update: Tensor, count: int, repeats: float) -> None:
    """Enter the update of the running variance as if each of ``count`` values had come ``repeats`` times."""
    in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    count *= torch.distributed.get_world_size(bn.process_group) if in_group and isinstance(bn, nn.SyncBatchNorm) else 1
    rescale = (count - 1) / count * (count * repeats) / (count * repeats - 1)
    momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
    bn.running_var.mul_(1 - momentum).add_(update, alpha=rescale)


class ConvBNReLU(nn.Module):
    """``relu(BN(conv1x1(x)))``, the lateral convolutions and the projections between widths (CBR).

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the output map.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, scale: Tensor | None = None, repeats: float = 1.0) -> Tensor:
        """``scale`` times the map, [B, C_in, H, W] -> [B, C_out, H, W]; see `batch_norm`.

        A scale that is not negative passes through ReLU, so it is applied before it, where it is free.
        """
        return F.relu(batch_norm(self.bn, self.conv(x), repeats, scale), inplace=True)


class SeparableConvBN(nn.Sequential):
    """``BN(pointwise(depthwise3x3(x)))`` with nothing between the two convolutions (SEP).

    Args:
        channels: channels of the input and of the output map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pw = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)


class FusionNode(nn.Module):
    """A node of the fusion graph: fast normalized fusion, then ``depth`` separable convolutions (Conv of Eq. 2).

    The maps arrive multiplied by their `coefficients`: whoever makes one can do that for less. ReLU stands between the
    convolutions and not after the last: the node hands out a pre-activation.

    Args:
        channels: channels of the maps that are fused, and of the result.
        num_inputs: how many maps are fused.
        depth: number of separable convolutions.
    """

    def __init__(self, channels: int, num_inputs: int, depth: int) -> None:
        super().__init__()
        self.fusion_weights = nn.Parameter(torch.ones(num_inputs))
        self.convs = nn.ModuleList(SeparableConvBN(channels) for _ in range(depth))

    @property
    def coefficients(self) -> Tensor:
        """Factor of each map, not negative, [num_inputs]."""
        return fusion_coefficients(self.fusion_weights)

    @property
    def norm(self) -> nn.Module:
        """Batch normalisation that the node's output leaves."""
        return self.convs[-1].bn  # type: ignore[return-value]

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """``num_inputs`` maps [B, C, H, W], multiplied by their coefficients -> [B, C, H, W]."""
        x = sum(others, start=first)
        for index, conv in enumerate(self.convs):
            x = conv(F.relu(x, inplace=True) if index else x)
        return x


class UpsampleConv(nn.Module):
    """Nearest up-sampling and a projection to the neighbour's width, ``CBR(UP(x))``.

    Where up-sampling repeats each value equally often (1, 2, 4, ... times), it is computed as ``UP(CBR(x))``: a 1x1
    convolution, batch statistics and ReLU do not mind the order. Result and gradients are the same for a quarter of the
    work, once `batch_norm` counts the repeated values. At other sizes, such as 17 to 33, some values count more than
    others in the batch statistics, and the map is up-sampled first.

    Args:
        in_channels: channels of the lower-resolution map.
        out_channels: channels of the level it goes to.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = ConvBNReLU(in_channels, out_channels)

    def forward(self, x: Tensor, size: Size, scale: Tensor) -> Tensor:
        """``scale`` times the resized map, [B, C_in, h, w] -> [B, C_out, *size]."""
        height, width = spatial_size(x)
        rows, columns = size[0] / height, size[1] / width
        # powers of 2 alone: for others torch computes the nearest position with a rounded ratio
        if rows in EQUAL_REPEATS and columns in EQUAL_REPEATS:
            return upsample_to(self.project(x, scale, rows * columns), size, "nearest")
        return self.project(upsample_to(x, size, "nearest"), scale)


class Upsample(nn.Module):
    """Up-sampling, then a projection (CBR) where ``project`` is set.

    Args:
        mode: 'nearest' or 'bilinear' (Section 3.1 as the paper words it).
        in_channels: channels of the lower-resolution map.
        out_channels: channels of the level it goes to.
        project: whether a CBR follows.
    """

    def __init__(self, mode: str, in_channels: int, out_channels: int, project: bool) -> None:
        super().__init__()
        self.mode = mode
        self.project = ConvBNReLU(in_channels, out_channels) if project else None

    def forward(self, x: Tensor, size: Size, scale: Tensor) -> Tensor:
        """``scale`` times the resized map, [B, C_in, h, w] -> [B, C_out, *size]."""
        if self.project is None:
            return upsample_to(x * scale, size, self.mode)
        return self.project(upsample_to(x, size, self.mode), scale)


class Downsample(nn.Module):
    """3x3 stride-2 max-pooling, then a projection (CBR) where ``project`` is set.

    Args:
        in_channels: channels of the higher-resolution map.
        out_channels: channels of the level it goes to.
        project: whether a CBR follows.
    """

    def __init__(self, in_channels: int, out_channels: int, project: bool) -> None:
        super().__init__()
        self.project = ConvBNReLU(in_channels, out_channels) if project else None

    def forward(self, x: Tensor, size: Size, scale: Tensor) -> Tensor:
        """``scale`` times the resized map, [B, C_in, H, W] -> [B, C_out, *size]."""
        pooled = max_pool_to(x, size)
        return pooled * scale if self.project is None else self.project(pooled, scale)
