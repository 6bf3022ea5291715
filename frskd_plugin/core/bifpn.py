"""The segmentors' BiFPN: a stack of constant-width fusion layers over a pyramid (EfficientDet; reference section 9)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.blocks import (
    SeparableConvBN,
    common_layout,
    fast_layout,
    fast_normalized_fusion,
    max_pool_to,
    spatial_size,
    subsample_to,
    upsample_to,
)
from frskd_plugin.core.checks import (
    check_batch_statistics,
    check_feats,
    check_in_channels,
    check_level,
    check_one_of,
    check_positive_int,
)

BIFPN_VARIANTS = ("efficientdet", "published")
EFFICIENTDET_EPS = 1e-4  # of the fusion (EfficientDet, Section 3.3)
PYRAMID_LEVELS = 6  # P2 .. P7


class EfficientDetNode(SeparableConvBN):
    """Fast normalized fusion, SiLU, 3x3 depthwise-separable convolution, BN (EfficientDet, Section 3.3)."""

    def __init__(self, channels: int, num_inputs: int) -> None:
        super().__init__(channels)
        self.fusion_weights = nn.Parameter(torch.ones(num_inputs))

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        fused = fast_normalized_fusion(self.fusion_weights, feats, EFFICIENTDET_EPS)
        return super().forward(F.silu(fused, inplace=True))


class PublishedNode(nn.Module):
    """``relu(BN(c * sum(x) + b))``: a plain sum and one scale and shift a channel (reference section 9, V)."""

    def __init__(self, channels: int, num_inputs: int) -> None:
        super().__init__()
        del num_inputs  # a sum has no weights for them
        self.conv = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        first, *others = feats
        return F.relu(self.bn(self.conv(sum(others, start=first))), inplace=True)


class BiFPNLayer(nn.Module):
    """Top-down and bottom-up path over n levels of one width.

    With x the inputs, u the top-down and o the bottom-up maps, and o_0 = u_0::

        u_i = node(x_i, up(u_{i+1}))              i = n-2 .. 0
        o_i = node(x_i, u_i, down(o_{i-1}))       0 < i < n-1

    The forms differ at the top. 'published': u_{n-1} = node(x_{n-1}), o_{n-1} = node(x_{n-1}, u_{n-1}, down(o_{n-2})).
    'efficientdet': u_{n-1} = x_{n-1}, o_{n-1} = node(x_{n-1}, down(o_{n-2})).

    The bottom-up path ends at ``end_level``; levels above it hand out u.
    """

    def __init__(self, channels: int, num_levels: int, variant: str, end_level: int) -> None:
        super().__init__()
        self.end_level = end_level
        self.published = variant == "published"
        node = PublishedNode if self.published else EfficientDetNode
        top = num_levels - 1
        self.td = nn.ModuleDict({str(i): node(channels, 2) for i in reversed(range(top))})
        if self.published:
            self.td[str(top)] = node(channels, 1)
        self.bu = nn.ModuleDict(
            {str(i): node(channels, 2 if i == top and not self.published else 3) for i in range(1, end_level + 1)}
        )

    def forward(self, feats: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C, H_i, W_i] -> as many maps of the same shapes."""
        top = len(feats) - 1
        up_mode, down_to = ("bilinear", subsample_to) if self.published else ("nearest", max_pool_to)

        u = list(feats)
        if self.published:
            u[top] = self.td[str(top)]([feats[top]])
        for i in reversed(range(top)):
            u[i] = self.td[str(i)]([feats[i], upsample_to(u[i + 1], spatial_size(feats[i]), up_mode)])

        o = list(u)
        for i in range(1, self.end_level + 1):
            down = down_to(o[i - 1], spatial_size(feats[i]))
            skips = [feats[i]] if i == top and not self.published else [feats[i], u[i]]
            o[i] = self.bu[str(i)]([*skips, down])
        return o


class BiFPN(nn.Module):
    """Pyramid P2..P7 from a backbone's maps, refined by ``repeat`` BiFPN layers of constant width.

    Each map gets a 1x1 convolution and BN to ``channels``; further levels are made from the last map by 3x3 max-pooling
    with stride 2 (EfficientDet). Maps that form a pyramid of ``channels`` channels already are taken as they are.

    Args:
        in_channels: of the maps that come in, highest resolution first.
        channels: of every map that goes out (64 for EfficientDet-d0, 88 for d1).
        num_levels: levels of the pyramid. None means six (P2..P7), or one a map where the maps are a pyramid already.
        repeat: number of layers.
        variant: 'efficientdet' or 'published' (the authors' code: no 3x3 convolutions, plain sums).
        end_level: level at which the last layer's bottom-up path ends. None keeps the whole layer.

    >>> import torch
    >>> neck = BiFPN([24, 40, 112, 320], channels=64)
    >>> feats = [torch.rand(2, c, s, s) for c, s in zip([24, 40, 112, 320], [16, 8, 4, 2])]
    >>> [tuple(p.shape) for p in neck(feats)][-3:]
    [(2, 64, 2, 2), (2, 64, 1, 1), (2, 64, 1, 1)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 64,
        num_levels: int | None = None,
        repeat: int = 3,
        variant: str = "efficientdet",
        end_level: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_in_channels(in_channels, least_levels=1)
        self.channels = check_positive_int("channels", channels)
        self.variant = check_one_of("variant", variant, BIFPN_VARIANTS)
        check_positive_int("repeat", repeat)
        is_pyramid = all(c == channels for c in self.in_channels) and len(self.in_channels) > 1
        if num_levels is None:
            num_levels = len(self.in_channels) if is_pyramid else max(PYRAMID_LEVELS, len(self.in_channels))
        self.num_levels = check_positive_int("num_levels", num_levels, least=2)
        self._extra_levels = num_levels - len(self.in_channels)
        if self._extra_levels < 0:
            raise ValueError(
                f"`num_levels` ({num_levels}) is smaller than the number of maps ({len(self.in_channels)}). "
                "Raise it or hand in fewer maps (`out_indices` of the backbone)."
            )
        self.end_level = check_level("end_level", end_level, self.num_levels)
        self.out_channels = [channels] * self.num_levels

        self.laterals = nn.ModuleList()
        if not is_pyramid:
            # Each extra level is made of the last map, so it shares that map's 1x1 convolution with no other level.
            sources = [*self.in_channels, *self.in_channels[-1:]] if self._extra_levels else self.in_channels
            self.laterals.extend(nn.Sequential(nn.Conv2d(c, channels, 1), nn.BatchNorm2d(channels)) for c in sources)
        ends = [self.num_levels - 1] * (repeat - 1) + [self.end_level]
        self.layers = nn.ModuleList(BiFPNLayer(channels, self.num_levels, variant, end) for end in ends)

    def _make_pyramid(self, feats: Sequence[Tensor]) -> list[Tensor]:
        pyramid = [lateral(feat) for lateral, feat in zip(self.laterals, feats, strict=False)] or list(feats)
        if self._extra_levels:
            extra = self.laterals[-1](feats[-1]) if self.laterals else feats[-1]
            for _ in range(self._extra_levels):
                height, width = spatial_size(extra)
                extra = max_pool_to(extra, ((height + 1) // 2, (width + 1) // 2))
                pyramid.append(extra)
        return pyramid

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [B, c_i, H_i, W_i] -> ``num_levels`` maps [B, channels, H_i, W_i].

        Raises:
            ValueError: if the maps are not those of ``in_channels``, or a level holds one value a channel in training.
        """
        check_feats(feats, self.in_channels, type(self).__name__)
        check_batch_statistics(feats, self.training, type(self).__name__)
        maps = self._make_pyramid(feats)
        check_batch_statistics(maps, self.training, f"{type(self).__name__}, pyramid")
        if self.training:  # a third of the time on a CPU
            maps = [fast_layout(feat) for feat in maps]
        for layer in self.layers:
            maps = layer(maps)
        if self.training:  # what goes out has the layout of what came in
            layout = common_layout(feats)
            maps = [feat.contiguous(memory_format=layout) for feat in maps]
        return tuple(maps)
