"""Feature losses: attention transfer (Eq. 3), hint regression (FitNet) and overhaul (Table 5); reference section 4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from frskd_plugin.core.blocks import ConvBNReLU
from frskd_plugin.core.checks import check_feats, check_in_channels, check_one_of
from frskd_plugin.core.soft_label import LOSS_VARIANTS

MAP_EPS = 1e-12
REDUCTIONS = ("mean", "batchmean")


def attention_map(feat: Tensor) -> Tensor:
    """Channel mean of the squares, normalised to unit L2 norm over the positions (phi of Eq. 3).

    [B, C, H, W] -> [B, H * W], in float32 at least, so that half-precision maps cannot overflow. A map of zeros stays
    zero, and so does its gradient.

    >>> import torch
    >>> attention_map(torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])).tolist()
    [[0.0, 1.0, 0.0, 0.0]]
    """
    return attention_maps([feat], [])[0]


def attention_maps(feats: Sequence[Tensor], constants: Sequence[Tensor]) -> list[Tensor]:
    """Return `attention_map` of each map, then of each constant, which gets no gradient; all in few operations."""
    maps = [*feats, *(feat.detach() for feat in constants)]
    sizes = [feat.shape[2] * feat.shape[3] for feat in maps]
    with torch.autocast(maps[0].device.type, enabled=False):
        with_gradient, constant = _AttentionMaps.apply(len(feats), *maps)
        return [*with_gradient.split(sizes[: len(feats)], dim=1), *constant.split(sizes[len(feats) :], dim=1)]


class _AttentionMaps(torch.autograd.Function):
    """Attention maps side by side, [B, sum H_i W_i], of the first ``count`` maps and of the others."""

    @staticmethod
    def forward(ctx: Any, count: int, *maps: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        # a norm, squared: it reduces in `dtype` without ever holding the squares of the whole map
        norms = [torch.linalg.vector_norm(feat, dim=1, dtype=dtype).flatten(1) for feat in maps]
        ctx.sizes = [norm.shape[1] for norm in norms]
        energy = torch.cat(norms, dim=1).square()
        parts = [torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in energy.split(ctx.sizes, dim=1)]
        lengths = _side_by_side(parts, ctx.sizes).clamp(min=MAP_EPS)
        own = sum(ctx.sizes[:count])
        attention, constant = (energy / lengths).split([own, sum(ctx.sizes[count:])], dim=1)
        ctx.save_for_backward(attention, lengths[:, :own], *maps[:count])
        ctx.mark_non_differentiable(constant)
        return attention, constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        attention, lengths, *feats = ctx.saved_tensors
        sizes = ctx.sizes[: len(feats)]
        gradient = 2 * gradient  # of the squares in the energy
        along = [part.sum(dim=1, keepdim=True) for part in (gradient * attention).split(sizes, dim=1)]
        through_length = _side_by_side(along, sizes) * (lengths > MAP_EPS)  # a length that was clamped is a constant
        of_energy = torch.addcmul(gradient, attention, through_length, value=-1) / lengths
        parts = zip(feats, of_energy.split(sizes, dim=1), strict=True)
        made = [(feat * part.view(len(feat), 1, *feat.shape[2:])).to(feat.dtype) for feat, part in parts]
        return None, *made, *[None] * (len(ctx.sizes) - len(feats))


def _side_by_side(values: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Repeat values [B, 1], each as often as its size says: [B, sum of the sizes]."""
    return torch.cat([value.expand(-1, size) for value, size in zip(values, sizes, strict=True)], dim=1)


def attention_transfer_loss(
    feat: Tensor, refined_feat: Tensor, variant: str = "published", reduction: str = "mean"
) -> Tensor:
    """Distance of the attention maps of one level; the refined map is a constant.

    'published': mean over batch and positions of the squared difference. 'equations': L2 norm of the difference, mean
    over the batch.

    An attention map has unit norm whatever its size, so that the squared differences of a map sum up to at most 2. The
    'published' mean over H x W positions therefore falls with 1 / (H W): beta weighs less on larger images, and within
    one network less on the levels of high resolution. ``reduction='batchmean'`` takes the sum over the positions and
    the mean over the batch, as ``torch.nn.functional.kl_div`` uses the word. A level is then H W times larger, and
    ``beta / (H W)``, with the size at which beta was tuned, weighs it as before. 'equations' is a norm of each map:
    both reductions are the same there.

    Args:
        feat: the student's map [B, C, H, W].
        refined_feat: the self-teacher's map [B, D, H, W]; gets no gradient.
        variant: 'published' or 'equations'.
        reduction: of 'published': 'mean' (the authors' code) or 'batchmean' (independent of the resolution).

    Raises:
        ValueError: if batch or size differ.

    >>> import torch
    >>> one, other = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[5.0, 0.0]]]])
    >>> attention_transfer_loss(one, other).item(), attention_transfer_loss(one, other, reduction="batchmean").item()
    (1.0, 2.0)
    """
    return AttentionTransferLoss(variant, reduction)([feat], [refined_feat])


class AttentionTransferLoss(nn.Module):
    """Sum over the levels of `attention_transfer_loss`, which says what the settings are."""

    def __init__(self, variant: str = "published", reduction: str = "mean") -> None:
        super().__init__()
        self.variant = check_one_of("variant", variant, LOSS_VARIANTS)
        self.reduction = check_one_of("reduction", reduction, REDUCTIONS)

    def forward(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, H_i, W_i] and [B, D_i, H_i, W_i] -> scalar; ValueError if they disagree."""
        return torch.stack(self.levels(feats, refined_feats)).sum()

    def levels(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> list[Tensor]:
        """Return the loss of each level, a scalar each."""
        check_same_levels(feats, refined_feats)
        found = attention_maps(feats, refined_feats)
        pairs = list(zip(found, found[len(feats) :], strict=False))
        if self.variant == "equations":  # vector_norm has gradient 0 where the maps agree
            return [torch.linalg.vector_norm(a - target, dim=1).mean() for a, target in pairs]
        if self.reduction == "batchmean":
            return [F.mse_loss(a, target, reduction="sum") / len(a) for a, target in pairs]
        return [F.mse_loss(a, target) for a, target in pairs]


def check_same_levels(feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> None:
    """Raise ValueError for lists of different length, and maps of one level of different batch or size."""
    if len(feats) != len(refined_feats) or not feats:
        raise ValueError(
            f"Student and self-teacher must hand out the same levels, got {len(feats)} and {len(refined_feats)} maps."
        )
    for level, (feat, refined_feat) in enumerate(zip(feats, refined_feats, strict=True)):
        if feat.ndim != 4 or feat.shape[:1] + feat.shape[2:] != refined_feat.shape[:1] + refined_feat.shape[2:]:
            raise ValueError(
                f"Maps [B, C, H, W] are compared by position: those of level {level} must agree in B, H and W, got "
                f"{list(feat.shape)} of the student and {list(refined_feat.shape)} of the self-teacher."
            )


class _RegressionLoss(nn.Module):
    """Comparison of the student's maps, regressed to the refined maps' channels, level by level."""

    def __init__(
        self, in_channels: Sequence[int], refined_channels: Sequence[int], make: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        student, teacher = check_in_channels(in_channels, 1), check_in_channels(refined_channels, 1)
        if len(student) != len(teacher):
            raise ValueError(
                f"Student and self-teacher must have the same levels, got channels {student} and {teacher}."
            )
        self.in_channels, self.refined_channels = student, teacher
        self.regressors = nn.ModuleList(make(c, d) for c, d in zip(student, teacher, strict=True))
        for conv in self.regressors.modules():
            if isinstance(conv, nn.Conv2d):  # reference section 11
                nn.init.normal_(conv.weight, std=(2.0 / conv.out_channels) ** 0.5)

    def forward(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> Tensor:
        """Maps [B, c_i, H_i, W_i] and [B, d_i, H_i, W_i] (no gradient) -> scalar; ValueError if they disagree."""
        return torch.stack(self.levels(feats, refined_feats)).sum()

    def levels(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> list[Tensor]:
        """Return the unweighted loss of each level, a scalar each."""
        check_same_levels(feats, refined_feats)
        check_feats(feats, self.in_channels, type(self).__name__)
        regressed = [regressor(feat) for regressor, feat in zip(self.regressors, feats, strict=True)]
        pairs = zip(regressed, refined_feats, strict=True)
        return [self.compare(level, r, g.detach()) for level, (r, g) in enumerate(pairs)]

    def compare(self, level: int, regressed: Tensor, refined_feat: Tensor) -> Tensor:
        """Loss of one level: maps [B, d, H, W] -> scalar."""
        raise NotImplementedError


class HintLoss(_RegressionLoss):
    """Mean squared error between regressed student maps ``relu(BN(conv1x1(f)))`` and refined maps, summed over levels.

    Args:
        in_channels: channels of the student's maps.
        refined_channels: channels of the refined maps (`SelfTeacherNeck.out_channels`).
    """

    def __init__(self, in_channels: Sequence[int], refined_channels: Sequence[int]) -> None:
        super().__init__(in_channels, refined_channels, ConvBNReLU)

    def compare(self, level: int, regressed: Tensor, refined_feat: Tensor) -> Tensor:
        return F.mse_loss(regressed, refined_feat)


def overhaul_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Mean of the negative part of N(bias, weight^2), a channel each; ``-3 |weight|`` where that part is too small.

    Weight and bias [C] are those of the batch normalisation.
    """
    std = weight.detach().abs().double()
    mean = bias.detach().double()
    ratio = mean / std
    negative_share = torch.special.ndtr(-ratio)
    expected = mean - std * torch.exp(-0.5 * ratio.square()) / (negative_share * (2 * torch.pi) ** 0.5)
    return torch.where(negative_share > 0.001, expected, -3 * std).to(weight.dtype)


def overhaul_loss(regressed: Tensor, refined_feat: Tensor, margin: Tensor) -> Tensor:
    """Partial L2 distance of a regressed map and a pre-activation (no gradient), both [B, D, H, W]; margin [D].

    The sum over the elements, mean over the batch.

    >>> import torch
    >>> student, teacher = torch.tensor([-2.0, 1.0]).view(1, 2, 1, 1), torch.tensor([-9.0, 3.0]).view(1, 2, 1, 1)
    >>> overhaul_loss(student, teacher, torch.tensor([-1.0, -1.0])).item()
    4.0
    """
    target = torch.maximum(refined_feat.detach(), margin.view(1, -1, 1, 1))
    counted = (regressed > target) | (target > 0)
    return ((regressed - target).square() * counted).sum() / regressed.shape[0]


def _conv_bn(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


class OverhaulLoss(_RegressionLoss):
    """Overhaul distillation between pre-activations; level i of n weighs ``2^-(n-1-i)``.

    The margins are those of ``norms`` when the loss is built, as in the authors' code.

    Args:
        in_channels: channels of the student's maps.
        norms: the batch normalisation behind each refined map (`SelfTeacherNeck.output_norms`).
    """

    def __init__(self, in_channels: Sequence[int], norms: Sequence[nn.Module]) -> None:
        super().__init__(in_channels, [norm.num_features for norm in norms], _conv_bn)  # type: ignore[misc]
        for level, norm in enumerate(norms):
            self.register_buffer(f"margin{level}", overhaul_margin(norm.weight, norm.bias))

    def forward(self, feats: Sequence[Tensor], refined_feats: Sequence[Tensor]) -> Tensor:
        levels = self.levels(feats, refined_feats)
        return torch.stack([loss / 2 ** (len(levels) - 1 - i) for i, loss in enumerate(levels)]).sum()

    def compare(self, level: int, regressed: Tensor, refined_feat: Tensor) -> Tensor:
        return overhaul_loss(regressed, refined_feat, getattr(self, f"margin{level}"))
