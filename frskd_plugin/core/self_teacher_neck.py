"""The self-teacher's feature network (Section 3.1): BiFPNc, and the constant-width BiFPN by a setting."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from frskd_plugin.core.bifpn import BiFPN
from frskd_plugin.core.bifpnc_layer import BiFPNcLayer
from frskd_plugin.core.checks import (
    check_batch_statistics,
    check_feats,
    check_in_channels,
    check_level,
    check_one_of,
    check_positive_int,
)

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
