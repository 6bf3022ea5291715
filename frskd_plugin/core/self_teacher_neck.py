"""The self-teacher's feature network (Section 3.1): BiFPNc, and the constant-width BiFPN by a setting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.bifpn import BiFPN
from frskd_plugin.core.blocks import (
    ConvBNReLU,
    Downsample,
    FusionNode,
    Upsample,
    UpsampleConv,
    fast_layout,
    spatial_size,
)
from frskd_plugin.core.checks import (
    check_batch_statistics,
    check_feats,
    check_in_channels,
    check_level,
    check_one_of,
    check_positive_int,
)


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
        rectify_input: whether the published form rectifies the maps that come in; needless on maps that leave a ReLU.
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
        rectify_input: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = list(out_channels)
        self.end_level = end_level
        self.published = variant == "published"
        self.repeated = repeated
        self.preactivation = preactivation
        self.rectify_input = rectify_input and self.published and not repeated
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
            return Upsample("bilinear", in_channels, out_channels, project=in_channels != out_channels)
        if constant_width:
            return Upsample("nearest", in_channels, out_channels, project=False)
        return UpsampleConv(in_channels, out_channels)

    def _make_down(self, in_channels: int, out_channels: int, constant_width: bool) -> nn.Module:
        project = not constant_width if self.published else in_channels != out_channels
        return Downsample(in_channels, out_channels, project)

    def output_norm(self, level: int) -> nn.Module:
        """The batch normalisation whose output is the pre-activation of ``level``."""
        nodes = self.bu_nodes if 0 < level <= self.end_level else self.td_nodes
        return nodes[str(level)].norm  # type: ignore[return-value]

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [B, c_i, H_i, W_i] -> as many maps [B, d_i, H_i, W_i], rectified unless ``preactivation``."""
        top = len(feats) - 1
        sizes = [spatial_size(feat) for feat in feats]
        # r_td[i], r_bu[i]: the coefficients of level i's nodes; each map is multiplied where that is cheapest
        r_td = {i: self.td_nodes[str(i)].coefficients.unbind() for i in range(top)}
        r_bu = {i: self.bu_nodes[str(i)].coefficients.unbind() for i in range(1, self.end_level + 1)}
        terms = [self._lateral_terms(i, feat, r_td.get(i), r_bu.get(i)) for i, feat in enumerate(feats)]
        td_terms, bu_terms = [td for td, _ in terms], [bu for _, bu in terms]

        p = list(td_terms)  # at the top P is the lateral itself
        outputs = list(p)
        for i in reversed(range(top)):
            up = self.td_resize[str(i)](p[i + 1], sizes[i], r_td[i][1])
            outputs[i] = self.td_nodes[str(i)](td_terms[i], up)
            p[i] = self._rectify(outputs[i])

        t = p[0]
        for i in range(1, self.end_level + 1):
            down = self.bu_resize[str(i)](t, sizes[i], r_bu[i][-1])
            skip = [] if i == top else [p[i] * r_bu[i][1]]
            outputs[i] = self.bu_nodes[str(i)](bu_terms[i], *skip, down)
            t = p[i] = self._rectify(outputs[i])
        return tuple(outputs if self.preactivation else p)

    def _rectify(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=not self.preactivation)

    def _lateral_terms(
        self, level: int, feat: Tensor, r_td: Sequence[Tensor] | None, r_bu: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the level's map gives to its top-down and its bottom-up node, [B, d_i, H_i, W_i] each.

        A path without a node at this level has no coefficients: the top-down term is then the lateral itself.
        """
        feat = fast_layout(F.relu(feat) if self.rectify_input else feat)
        if self.published and self.repeated:  # the top-down path takes the maps as they are
            return _times(feat, r_td), None if r_bu is None else self.laterals[str(level)](feat, r_bu[0])
        lateral = self.laterals[str(level)]
        if not self.published:  # one lateral for both paths
            made = lateral(feat)
            return _times(made, r_td), None if r_bu is None else _times(made, r_bu)
        if r_bu is None:
            return lateral(feat, None if r_td is None else r_td[0]), None
        d = self.out_channels[level]
        td_scale = feat.new_ones(d) if r_td is None else r_td[0].expand(d)
        td_term, bu_term = lateral(feat, torch.cat([td_scale, r_bu[0].expand(d)])).chunk(2, dim=1)
        return td_term, bu_term


def _times(lateral: Tensor, coefficients: Sequence[Tensor] | None) -> Tensor:
    """The first input of a node; where there is no node, the map as it is."""
    return lateral if coefficients is None else lateral * coefficients[0]


# the depth of a node where none is given: 2 is what Table 6 counts, 1 is what Eq. 2 shows
DEFAULT_DEPTH = {"published": 2, "equations": 1}
# the segmentors' layers and the form of BiFPN they take
SEGMENTOR_VARIANTS = {"efficientdet": "efficientdet", "published_seg": "published"}
TEACHER_VARIANTS = (*DEFAULT_DEPTH, *SEGMENTOR_VARIANTS)


class SelfTeacherNeck(nn.Module):
    """Refines the student's feature maps by ``repeat`` fusion layers.

    Args:
        in_channels: channels c_i of the maps, level 0 = highest resolution; at least two levels.
        width: the paper's w: level i gets d_i = w * c_i channels.
        channels: 'scaled' for BiFPNc, or an int D for a BiFPN with D channels at every level.
        depth: separable convolutions a node; None means 2 for 'published' and 1 for 'equations'.
        repeat: number of layers.
        variant: 'published' (the authors' code, which the paper's alpha and beta belong to) or 'equations' (Eq. 1-2 as
            written); for segmentors, with an int as ``channels``, also 'efficientdet' and 'published_seg', the two
            forms of `BiFPN`.
        end_level: level that the classifier or head reads, at which the graph ends; None is the last one.
        preactivation: hand out the maps before their last ReLU (overhaul distillation).
        rectify_input: 'published' takes relu(F_i). False saves that pass where the student's maps leave a ReLU anyway.
        max_channels: upper limit of each level's channels, for students with many; not with an int as ``channels``.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for arguments out of range.

    >>> import torch
    >>> neck = SelfTeacherNeck([8, 16, 32], width=2)
    >>> feats = [torch.rand(2, c, s, s) for c, s in zip([8, 16, 32], [8, 4, 2])]
    >>> [tuple(feat.shape) for feat in neck(feats)]
    [(2, 16, 8, 8), (2, 32, 4, 4), (2, 64, 2, 2)]
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 2,
        channels: str | int = "scaled",
        depth: int | None = None,
        repeat: int = 1,
        variant: str = "published",
        end_level: int | None = None,
        preactivation: bool = False,
        rectify_input: bool = True,
        max_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = check_in_channels(in_channels)
        self.variant = check_one_of("variant", variant, TEACHER_VARIANTS)
        check_positive_int("repeat", repeat)
        check_positive_int("width", width)
        num_levels = len(self.in_channels)
        self.end_level = check_level("end_level", end_level, num_levels)
        constant_width = channels != "scaled"
        if constant_width:
            self.out_channels = [check_positive_int("channels", channels)] * num_levels
            if max_channels is not None:
                raise ValueError(f"`channels={channels}` is the width of every level: leave `max_channels` out.")
        else:
            limit = width * max(self.in_channels)
            limit = limit if max_channels is None else check_positive_int("max_channels", max_channels)
            self.out_channels = [min(width * c, limit) for c in self.in_channels]
        self.preactivation = preactivation

        if variant in SEGMENTOR_VARIANTS:
            self.layers = nn.Sequential(self._make_bifpn(channels, depth, repeat))
            return
        depth = check_positive_int("depth", DEFAULT_DEPTH[variant] if depth is None else depth)
        layers = []
        for index in range(repeat):
            is_last = index == repeat - 1
            layers.append(
                BiFPNcLayer(
                    self.out_channels if index else self.in_channels,
                    self.out_channels,
                    depth=depth,
                    variant=variant,
                    constant_width=constant_width,
                    repeated=index > 0,
                    end_level=self.end_level if is_last else num_levels - 1,
                    preactivation=preactivation and is_last,
                    rectify_input=rectify_input,
                )
            )
        self.layers = nn.Sequential(*layers)

    def _make_bifpn(self, channels: str | int, depth: int | None, repeat: int) -> BiFPN:
        if not isinstance(channels, int):
            raise ValueError(
                f"`variant={self.variant!r}` is a stack of BiFPN layers of one width: give `channels` as an int "
                f"(64 for EfficientDet-d0), got {channels!r}."
            )
        if self.preactivation or depth not in (None, 1):
            raise ValueError(
                f"`variant={self.variant!r}` has one convolution a node and no pre-activations: leave `depth` and "
                "`preactivation` out, or use variant 'published' or 'equations'."
            )
        num_levels = len(self.in_channels)
        form = SEGMENTOR_VARIANTS[self.variant]
        return BiFPN(self.in_channels, channels, num_levels, repeat=repeat, variant=form, end_level=self.end_level)

    def output_norms(self) -> list[nn.Module]:
        """The batch normalisation behind each level's pre-activation (overhaul distillation reads its margins there).

        Raises:
            ValueError: for a graph that does not end at the last level, or a segmentor's variant.
        """
        last_layer = self.layers[-1]
        if not isinstance(last_layer, BiFPNcLayer) or self.end_level != len(self.in_channels) - 1:
            raise ValueError(
                "Only a self-teacher of variant 'published' or 'equations' whose graph ends at the last level has a "
                f"batch normalisation for each map; this one is {self.variant!r} and ends at level {self.end_level}."
            )
        return [last_layer.output_norm(level) for level in range(len(self.in_channels))]

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [B, c_i, H_i, W_i] -> as many refined maps [B, d_i, H_i, W_i].

        Raises:
            TypeError: if ``feats`` is not a list of tensors.
            ValueError: if the maps disagree with ``in_channels``, or hold one value a channel in train mode.
        """
        name = type(self).__name__
        check_feats(feats, self.in_channels, name)
        check_batch_statistics(feats, self.training, name)
        return self.layers(feats)
