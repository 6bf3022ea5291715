"""The self-teacher's feature network (Section 3.1): BiFPNc, and the constant-width BiFPN by a setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frskd_plugin.core.bifpn import BiFPN
from frskd_plugin.core.blocks import FUSION_EPS, ConvBNReLU, FusionNode, Resize, fast_layout, recompute, spatial_size
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
    gradient; the levels above it hand out P. 'published' has a lateral for each path and nearest up-sampling,
    'equations' one lateral and bilinear up-sampling. Settings that `SelfTeacherNeck` has too are explained there.

    Args:
        constant_width: BiFPN: maps have one width and are fused without a projection in the published form.
        repeated: behind another layer; the published form then takes the maps as they are in the top-down path.
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
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = list(out_channels)
        self.checkpoint = checkpoint
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
            parts = int(not (self.published and repeated)) + int(self.published and 0 < i <= end_level)
            if parts:
                self.laterals[str(i)] = ConvBNReLU(c, parts * d)
            if i < top:
                up_mode = "nearest" if self.published else "bilinear"
                self.td_resize[str(i)] = self._make_resize(up_mode, i + 1, i, constant_width)
                self.td_nodes[str(i)] = FusionNode(d, 2, depth)
            if 0 < i <= end_level:
                self.bu_resize[str(i)] = self._make_resize("max", i - 1, i, constant_width)
                self.bu_nodes[str(i)] = FusionNode(d, 2 if i == top else 3, depth)
        self._prepare_scales()
        self.register_load_state_dict_post_hook(_follow_weights)

    def _make_resize(self, mode: str, source: int, level: int, constant_width: bool) -> Resize:
        before, d = self.out_channels[source], self.out_channels[level]
        return Resize(mode, before, d, project=not constant_width if self.published else before != d)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BiFPNcLayer:
        super()._apply(fn, recurse)
        _follow_weights(self)
        return self

    def _prepare_scales(self) -> None:
        """Make the constant matrices of `_scales`, which say what each fusion coefficient scales."""
        # a coefficient goes into the batch normalisation before it, where it costs no pass over a map; else on the map
        weights = [node.fusion_weights for node in (*self.td_nodes.values(), *self.bu_nodes.values())]
        one = sum(map(len, weights))  # coefficients are numbered: those of the nodes, then this one, which is always 1
        numbers = iter(range(one))
        td, bu = (
            {int(i): [next(numbers) for _ in range(len(node.fusion_weights))] for i, node in nodes.items()}
            for nodes in (self.td_nodes, self.bu_nodes)
        )
        in_norms: dict[tuple[str, int], list[int]] = {}  # (which part, level) -> number of the coefficient of each row
        on_maps: dict[tuple[str, int], list[int]] = {}

        def scale(part: str, level: int, coefficients: list[int], in_norm: bool) -> None:
            repeat = self.out_channels[level] if in_norm else 1
            if coefficients:
                (in_norms if in_norm else on_maps)[part, level] = [n for n in coefficients for _ in range(repeat)]

        for i in range(len(self.out_channels)):
            to_td, to_bu = td.get(i, []), bu.get(i, [])
            if self.published and not self.repeated:
                scale("laterals", i, [*(to_td[:1] or [one]), *to_bu[:1]], True)
            else:
                scale("td", i, to_td[:1], False)
                scale("laterals" if self.published else "bu", i, to_bu[:1], self.published)
            scale("td_resize", i, to_td[1:], bool(to_td) and self.td_resize[str(i)].project is not None)
            scale("bu_resize", i, to_bu[-1:], bool(to_bu) and self.bu_resize[str(i)].project is not None)
            scale("skip", i, to_bu[1:-1], False)

        rows = [n for numbers in (*in_norms.values(), *on_maps.values()) for n in numbers]
        like = weights[0]
        table = torch.eye(one + 1, dtype=like.dtype, device=like.device)[rows]
        self._spread, self._constant = table[:, :one].contiguous(), table[:, one].contiguous()
        self._same_node = torch.block_diag(*(torch.ones_like(w.detach()).expand(len(w), -1) for w in weights))
        self._in_norms, self._on_maps = {key: len(numbers) for key, numbers in in_norms.items()}, [*on_maps]

    def _scales(self) -> dict[tuple[str, int], Any]:
        """Return what each fusion coefficient scales, times it: a norm's weight and bias [C], or for a map, itself."""
        # relu(w) / (sum relu(w) + eps) of all nodes at once: one at a time they are most of a step's operations
        weights = [node.fusion_weights for node in (*self.td_nodes.values(), *self.bu_nodes.values())]
        norms = [self._norm(*key) for key in self._in_norms]
        sizes = [*self._in_norms.values()]
        device = weights[0].device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            positive = torch.cat(weights).relu()
            coefficients = positive / (self._same_node @ positive + FUSION_EPS)
            spread = torch.addmv(self._constant, self._spread, coefficients)
            in_norms, *on_maps = spread.split([sum(sizes)] + [1] * len(self._on_maps))
            scales: dict[tuple[str, int], Any] = {
                key: factor.squeeze(0) for key, factor in zip(self._on_maps, on_maps, strict=True)
            }
            if norms:
                affine = torch.cat([n.weight for n in norms] + [n.bias for n in norms]).view(2, -1) * in_norms
                weight_bias = affine.view(-1).split(sizes * 2)
                scales |= zip(self._in_norms, zip(weight_bias, weight_bias[len(norms) :], strict=False), strict=True)
        return scales

    def _norm(self, part: str, level: int) -> nn.Module:
        module: Any = getattr(self, part)[str(level)]
        return getattr(module, "project", module).bn

    def output_norm(self, level: int) -> nn.Module:
        """Batch normalisation whose output is the pre-activation of ``level``."""
        nodes = self.bu_nodes if 0 < level <= self.end_level else self.td_nodes
        return nodes[str(level)].convs[-1].bn  # type: ignore[union-attr, index, return-value]

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [B, c_i, H_i, W_i] -> as many maps [B, d_i, H_i, W_i], rectified unless ``preactivation``."""
        top = len(feats) - 1
        sizes = [spatial_size(feat) for feat in feats]
        scales = self._scales()
        terms = [self._run(self._lateral_terms, self._lateral(i), i, feat, scales) for i, feat in enumerate(feats)]

        p = [td for td, _ in terms]  # at the top P is the lateral itself
        outputs = list(p)
        for i in reversed(range(top)):
            resize, node = self.td_resize[str(i)], self.td_nodes[str(i)]
            up = self._run(resize, resize, p[i + 1], sizes[i], scales["td_resize", i])
            outputs[i] = self._run(node, node, p[i] + up)
            p[i] = self._rectify(outputs[i])

        t = p[0]
        for i in range(1, self.end_level + 1):
            resize, node = self.bu_resize[str(i)], self.bu_nodes[str(i)]
            fused = terms[i][1] + self._run(resize, resize, t, sizes[i], scales["bu_resize", i])
            if i < top:
                fused += p[i] * scales["skip", i]
            outputs[i] = self._run(node, node, fused)
            t = p[i] = self._rectify(outputs[i])
        return tuple(outputs if self.preactivation else p)

    def _run(self, function: Callable[..., Any], part: nn.Module | None, *args: Any) -> Any:
        return recompute(function, part, *args) if self.checkpoint and self.training else function(*args)

    def _lateral(self, level: int) -> nn.Module | None:
        return self.laterals[str(level)] if str(level) in self.laterals else None

    def _rectify(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=not self.preactivation)

    def _lateral_terms(self, level: int, feat: Tensor, scales: dict[tuple[str, int], Any]) -> tuple[Tensor, Any]:
        """Return what a level's map gives to its top-down node (the lateral without one) and bottom-up node (None)."""
        feat = fast_layout(F.relu(feat) if self.rectify_input else feat)
        lateral: Any = self._lateral(level)
        if self.published and not self.repeated:
            both = lateral(feat, scales["laterals", level])
            return both.chunk(2, dim=1) if str(level) in self.bu_nodes else (both, None)
        shared = feat if self.published else lateral(feat)
        td = shared * scales["td", level] if ("td", level) in scales else shared
        if self.published:  # the top-down path takes the maps as they are
            return td, lateral and lateral(feat, scales["laterals", level])
        return td, shared * scales["bu", level] if ("bu", level) in scales else None


def _follow_weights(layer: BiFPNcLayer, _: Any = None) -> None:
    """Make the constant matrices of a layer anew where its weights have another device or dtype now."""
    # made, not moved: `to_empty` would leave them without values; kept where they fit: a CUDA graph may read them
    like = next(iter(layer.td_nodes.values())).fusion_weights
    if (like.device, like.dtype) != (layer._spread.device, layer._spread.dtype):
        layer._prepare_scales()


# the depth of a node where none is given: 2 is what Table 6 counts, 1 is what Eq. 2 shows
DEFAULT_DEPTH = {"published": 2, "equations": 1}
# the segmentors' layers and the form of BiFPN they take
SEGMENTOR_VARIANTS = {"efficientdet": "efficientdet", "published_seg": "published"}
TEACHER_VARIANTS = (*DEFAULT_DEPTH, *SEGMENTOR_VARIANTS)


class SelfTeacherNeck(nn.Module):
    """Stack of ``repeat`` fusion layers that refines the student's feature maps.

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
        checkpoint: keep less for the backward pass and compute it again there; results and statistics stay. Not for the
            segmentors' forms.

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
        checkpoint: bool = False,
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
            if checkpoint:
                raise ValueError(f"`variant={variant!r}` keeps all its maps: leave `checkpoint` out.")
            self.layers = nn.Sequential(self._make_bifpn(channels, depth, repeat))
            return
        depth = check_positive_int("depth", DEFAULT_DEPTH[variant] if depth is None else depth)
        last = repeat - 1
        self.layers = nn.Sequential(
            *(
                BiFPNcLayer(
                    self.out_channels if index else self.in_channels,
                    self.out_channels,
                    depth=depth,
                    variant=variant,
                    constant_width=constant_width,
                    repeated=index > 0,
                    end_level=self.end_level if index == last else num_levels - 1,
                    preactivation=preactivation and index == last,
                    rectify_input=rectify_input,
                    checkpoint=checkpoint,
                )
                for index in range(repeat)
            )
        )

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
        """Batch normalisation behind each level's pre-activation, where overhaul distillation reads its margins.

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
            ValueError: if the maps disagree with ``in_channels``, or hold one value a channel in train mode.
        """
        name = type(self).__name__
        check_feats(feats, self.in_channels, name)
        check_batch_statistics(feats, self.training, name)
        return self.layers(feats)
