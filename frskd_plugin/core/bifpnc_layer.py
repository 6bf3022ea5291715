"""One layer of the self-teacher's fusion graph, BiFPNc (Eq. 1 and 2, Figure 2; reference sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.blocks import (
    BilinearUpsample,
    ConvBNReLU,
    FusionNode,
    MaxPoolConv,
    NearestUpsample,
    UpsampleConv,
)
from frskd_plugin.core.resize import spatial_size


class BiFPNcLayer(nn.Module):
    """Top-down and bottom-up path over maps of any widths.

    With L the laterals, P the top-down and T the bottom-up maps, and T_0 = P_0 (rectification left out)::

        P_{n-1} = L_{n-1}                      P_i = node(L_i, up(P_{i+1}))              i = n-2 .. 0
        T_{n-1} = node(L_{n-1}, down(T_{n-2})) T_i = node(L_i, P_i, down(T_{i-1}))       0 < i < n-1

    The bottom-up path stops at ``end_level``, the level that the classifier reads, so that nothing is left without a
    gradient; the levels above it hand out P.

    Args:
        in_channels: channels c_i of the maps that come in, level 0 = highest resolution.
        out_channels: channels d_i of the levels.
        depth: separable convolutions a node.
        variant: 'published' (a lateral for each path, nearest up-sampling) or 'equations' (one lateral, bilinear).
        constant_width: BiFPN: maps have one width and are fused without a projection in the published form.
        repeated: behind another layer; the published form then takes the maps as they are in the top-down path.
        end_level: level at which the graph ends.
        preactivation: hand out the nodes' outputs before ReLU.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        *,
        depth: int,
        variant: str,
        constant_width: bool,
        repeated: bool,
        end_level: int,
        preactivation: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = list(out_channels)
        self.end_level = end_level
        self.published = variant == "published"
        self.repeated = repeated
        self.preactivation = preactivation
        self.laterals = nn.ModuleDict()
        self.td_resize, self.td_nodes = nn.ModuleDict(), nn.ModuleDict()
        self.bu_resize, self.bu_nodes = nn.ModuleDict(), nn.ModuleDict()

        top = len(in_channels) - 1
        for i, (c, d) in enumerate(zip(in_channels, out_channels, strict=True)):
            # Both laterals of the published form read one map, so one convolution makes them side by side.
            parts = int(self._has_td_lateral) + int(self.published and 0 < i <= end_level)
            if parts:
                self.laterals[str(i)] = ConvBNReLU(c, parts * d)
            if i < top:
                self.td_resize[str(i)] = self._make_up(out_channels[i + 1], d, constant_width)
                self.td_nodes[str(i)] = FusionNode(d, 2, depth)
            if 0 < i <= end_level:
                self.bu_resize[str(i)] = self._make_down(out_channels[i - 1], d, constant_width)
                self.bu_nodes[str(i)] = FusionNode(d, 2 if i == top else 3, depth)

    @property
    def _has_td_lateral(self) -> bool:
        return not (self.published and self.repeated)

    def _make_up(self, in_channels: int, out_channels: int, constant_width: bool) -> nn.Module:
        if not self.published:
            return BilinearUpsample(in_channels, out_channels)
        return NearestUpsample() if constant_width else UpsampleConv(in_channels, out_channels)

    def _make_down(self, in_channels: int, out_channels: int, constant_width: bool) -> nn.Module:
        project = not constant_width if self.published else in_channels != out_channels
        return MaxPoolConv(in_channels, out_channels, project)

    def output_norm(self, level: int) -> nn.Module:
        """The batch normalisation whose output is the pre-activation of ``level``."""
        nodes = self.bu_nodes if 0 < level <= self.end_level else self.td_nodes
        return nodes[str(level)].norm  # type: ignore[return-value]

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """N maps [B, c_i, H_i, W_i] -> n maps [B, d_i, H_i, W_i], rectified unless ``preactivation``."""
        top = len(feats) - 1
        td_lateral, bu_lateral = self._make_laterals(feats)

        p = list(td_lateral)
        outputs = list(p)
        for i in reversed(range(top)):
            up = self.td_resize[str(i)](p[i + 1], spatial_size(feats[i]))
            outputs[i] = self.td_nodes[str(i)]([td_lateral[i], up])
            p[i] = self._rectify(outputs[i])

        t = p[0]
        for i in range(1, self.end_level + 1):
            down = self.bu_resize[str(i)](t, spatial_size(feats[i]))
            fused = [bu_lateral[i], down] if i == top else [bu_lateral[i], p[i], down]
            outputs[i] = self.bu_nodes[str(i)](fused)
            t = p[i] = self._rectify(outputs[i])
        return tuple(outputs if self.preactivation else p)

    def _rectify(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=not self.preactivation)

    def _make_laterals(self, feats: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The laterals of the top-down and of the bottom-up path, [B, d_i, H_i, W_i] each."""
        if self.published and not self.repeated:
            feats = [F.relu(feat) for feat in feats]
        made = [self.laterals[str(i)](feat) if str(i) in self.laterals else feat for i, feat in enumerate(feats)]
        if not self.published:
            return made, made
        if self.repeated:
            return list(feats), made
        halves = [
            lateral.chunk(2, dim=1) if 0 < i <= self.end_level else (lateral, lateral) for i, lateral in enumerate(made)
        ]
        return [half[0] for half in halves], [half[1] for half in halves]
