"""Building blocks of the self-teacher (reference section 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.fusion import fast_normalized_fusion
from frskd_plugin.core.resize import Size, max_pool_to, spatial_size, upsample_to


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

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H, W]."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


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

    ReLU stands between the convolutions and not after the last: the node hands out a pre-activation.

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
    def norm(self) -> nn.Module:
        """The batch normalisation that the node's output leaves."""
        return self.convs[-1].bn  # type: ignore[return-value]

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """``num_inputs`` maps [B, C, H, W] -> [B, C, H, W]."""
        x = fast_normalized_fusion(self.fusion_weights, feats)
        first, *others = self.convs
        x = first(x)
        for conv in others:
            x = conv(F.relu(x, inplace=True))
        return x


def batch_norm_of_repeats(bn: nn.Module, x: Tensor, repeats: float) -> Tensor:
    """Batch normalisation of ``x``, with the running statistics of a map that repeats each of its values.

    Repeating values changes neither their mean nor their biased variance; only the unbiased variance that goes into the
    running statistics depends on the count.

    Args:
        bn: an ``nn.BatchNorm2d``, or what SyncBN conversion made of it.
        x: [B, C, H, W].
        repeats: how often each value counts, >= 1.
    """
    if not (bn.training and bn.track_running_stats) or repeats == 1:
        return bn(x)
    # The layer writes this batch's part, momentum * unbiased variance, into a buffer of zeros: there it is rescaled.
    update = torch.zeros_like(bn.running_var)
    y = torch.func.functional_call(bn, {"running_var": update}, (x,))
    with torch.no_grad():
        world_size = torch.distributed.get_world_size() if isinstance(bn, nn.SyncBatchNorm) else 1
        count = x.numel() // x.shape[1] * world_size
        rescale = (count - 1) / count * (count * repeats) / (count * repeats - 1)
        momentum = 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
        bn.running_var.mul_(1 - momentum).add_(update, alpha=rescale)
    return y


class UpsampleConv(nn.Module):
    """Nearest up-sampling and a projection to the neighbour's width, ``CBR(UP(x))``, computed as ``UP(CBR(x))``.

    Nearest up-sampling repeats values, and a 1x1 convolution, batch statistics and ReLU do not mind the order: result
    and gradients are the same for a quarter of the work, once `batch_norm_of_repeats` counts the repeated values.

    Args:
        in_channels: channels of the lower-resolution map.
        out_channels: channels of the level it goes to.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = ConvBNReLU(in_channels, out_channels)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """[B, C_in, h, w] -> [B, C_out, *size]."""
        height, width = spatial_size(x)
        repeats = max(1.0, size[0] * size[1] / (height * width))
        projected = batch_norm_of_repeats(self.project.bn, self.project.conv(x), repeats)
        return upsample_to(F.relu(projected, inplace=True), size, "nearest")


class BilinearUpsample(nn.Module):
    """Bilinear up-sampling, then a 1x1 conv + BN + ReLU where the widths differ (Section 3.1 as the paper words it).

    Args:
        in_channels: channels of the lower-resolution map.
        out_channels: channels of the level it goes to.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = ConvBNReLU(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """[B, C_in, h, w] -> [B, C_out, *size]."""
        return self.project(upsample_to(x, size, "bilinear"))


class NearestUpsample(nn.Module):
    """Nearest up-sampling of a map that has the neighbour's width already."""

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """[B, C, h, w] -> [B, C, *size]."""
        return upsample_to(x, size, "nearest")


class MaxPoolConv(nn.Module):
    """3x3 stride-2 max-pooling, then a projection (CBR) where ``project`` is set.

    Args:
        in_channels: channels of the higher-resolution map.
        out_channels: channels of the level it goes to.
        project: whether a CBR follows.
    """

    def __init__(self, in_channels: int, out_channels: int, project: bool) -> None:
        super().__init__()
        self.project = ConvBNReLU(in_channels, out_channels) if project else nn.Identity()

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, *size]."""
        return self.project(max_pool_to(x, size))
