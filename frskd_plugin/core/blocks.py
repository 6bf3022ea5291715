"""Building blocks of the self-teacher (reference section 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FUSION_EPS = 1e-6


def fast_normalized_fusion(weights: Tensor, feats: Sequence[Tensor], eps: float = FUSION_EPS) -> Tensor:
    """``sum_i relu(w_i) x_i / (sum_i relu(w_i) + eps)`` of M maps x [B, C, H, W] and weights w [M].

    >>> import torch
    >>> maps = [torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 4.0)]
    >>> fast_normalized_fusion(torch.ones(2), maps, eps=0.0).item()
    3.0
    """
    positive = weights.relu()
    first, *others = positive / (positive.sum() + eps)
    fused = feats[0] * first
    for coefficient, feat in zip(others, feats[1:], strict=True):
        fused = fused + feat * coefficient
    return fused


Size = tuple[int, int]


def fast_layout(feat: Tensor) -> Tensor:
    """Return a map on a CPU in channels_last, where 1x1 and depthwise convolutions take two thirds of the time."""
    return feat.contiguous(memory_format=torch.channels_last) if feat.device.type == "cpu" else feat


def common_layout(feats: Sequence[Tensor]) -> torch.memory_format:
    """Return the layout of a list of maps [B, C, H, W]: channels_last where all have it, and not by size alone."""
    channels_last = all(feat.is_contiguous(memory_format=torch.channels_last) for feat in feats)
    ordinary = all(feat.is_contiguous() for feat in feats)  # a map of 1 x 1 is in both
    return torch.channels_last if channels_last and not ordinary else torch.contiguous_format


def spatial_size(feat: Tensor) -> Size:
    """Return height and width of a map [B, C, H, W]."""
    return feat.shape[-2], feat.shape[-1]


def max_pool_to(feat: Tensor, size: Size) -> Tensor:
    """Down-sample a map [B, C, H, W] by max-pooling to exactly ``size``, height and width.

    A halving, of an even or an odd size, is a 3x3 pooling with stride 2 and TensorFlow's "same" padding; other ratios
    pool adaptively. Padding acts as -inf, which equals zero padding on rectified maps.
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

    A target that is smaller in an axis is max-pooled instead; a map of that size is handed back.
    """
    height, width = spatial_size(feat)
    if (height, width) == size:
        return feat
    if size[0] < height or size[1] < width:
        return max_pool_to(feat, size)
    return F.interpolate(feat, size, mode=mode)


def subsample_to(feat: Tensor, size: Size) -> Tensor:
    """Down-sample by taking the nearest value, ``y[i, j] = x[2i, 2j]`` for a halving (reference section 9, SUB)."""
    return feat if spatial_size(feat) == size else F.interpolate(feat, size, mode="nearest")


EQUAL_REPEATS = (1, 2, 4, 8, 16, 32)
Affine = tuple[Tensor, Tensor]  # weight and bias [C] of a batch normalisation


def batch_norm(bn: nn.Module, x: Tensor, repeats: float = 1.0, affine: Affine | None = None) -> Tensor:
    """``BN(x)``, with the running statistics of a map that repeats each value of ``x``.

    Repeating values changes neither their mean nor their biased variance; only the unbiased variance that goes into the
    running statistics depends on the count. ``affine`` takes the place of the layer's own weight and bias.
    """
    replaced = {} if affine is None else {"weight": affine[0], "bias": affine[1]}
    follows = bn.training and getattr(bn, "track_running_stats", False)  # frozen layers of timm and torchvision do not
    rescale = _variance_ratio(bn, x, repeats) if follows and repeats != 1 else 1.0
    if rescale != 1:  # the layer's update is rescaled as a whole, so the old variance is divided beforehand
        replaced["running_var"] = bn.running_var / rescale
    y = torch.func.functional_call(bn, replaced, (x,)) if replaced else bn(x)
    if rescale != 1:  # `data`: like the layer's own update, no change in the eyes of a backward pass to come
        torch.mul(replaced["running_var"], rescale, out=bn.running_var.data)
    return y


def _variance_ratio(bn: nn.Module, x: Tensor, repeats: float) -> float:
    """Return the unbiased variance of values that come ``repeats`` times each, over that of the values."""
    in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    world = torch.distributed.get_world_size(bn.process_group) if in_group and isinstance(bn, nn.SyncBatchNorm) else 1
    count = max(2, x.numel() // x.shape[1] * world)  # the layer itself refuses a single value
    return (count - 1) / count * (count * repeats) / (count * repeats - 1)


def recompute(function: Callable[..., Any], part: nn.Module | None, *args: Any) -> Any:
    """Return ``function(*args)``, of which nothing is kept: the backward pass runs it a second time.

    It must not draw random numbers. The batch normalisations of ``part``, which it runs, count the batch once.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # which decides itself what it recomputes
        return function(*args)
    modules = [] if part is None else part.modules()
    norms = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_set_aside(norms)

    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _statistics_set_aside(norms: Sequence[nn.Module]) -> Iterator[None]:
    own = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: x if x is None else x.clone() for name, x in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)


class ConvBNReLU(nn.Module):
    """``relu(BN(conv1x1(x)))``, the lateral convolutions and the projections between widths (CBR)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, affine: Affine | None = None, repeats: float = 1.0) -> Tensor:
        return F.relu(batch_norm(self.bn, self.conv(x), repeats, affine), inplace=True)


class SeparableConvBN(nn.Sequential):
    """``BN(pointwise(depthwise3x3(x)))`` with nothing between the two convolutions (SEP)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pw = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)


class FusionNode(nn.Module):
    """A node of the fusion graph: ``depth`` separable convolutions of a sum of maps (Conv of Eq. 2).

    The node owns the weights of its fusion; `BiFPNcLayer` turns those of all nodes into coefficients, and multiplies
    each map where it is made. ReLU stands between the convolutions and not after the last: the node hands out a
    pre-activation.
    """

    def __init__(self, channels: int, num_inputs: int, depth: int) -> None:
        super().__init__()
        self.fusion_weights = nn.Parameter(torch.ones(num_inputs))
        self.convs = nn.ModuleList(SeparableConvBN(channels) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Weighted sum of the maps [B, C, H, W] -> [B, C, H, W]."""
        for index, conv in enumerate(self.convs):
            x = conv(F.relu(x, inplace=True) if index else x)
        return x


class Resize(nn.Module):
    """Resizing to the neighbour's size and, where ``project`` is set, a projection to its width (CBR).

    Nearest up-sampling that repeats each value equally often (1, 2, 4, ... times) comes after the projection: a 1x1
    convolution, batch statistics and ReLU do not mind the order. Result and gradients are the same for a quarter of the
    work, once `batch_norm` counts the repeated values. At other sizes, such as 17 to 33, some values count more than
    others in the batch statistics, and the map is up-sampled first.

    ``mode`` is 'max' for 3x3 stride-2 max-pooling, or that of an up-sampling, 'nearest' or 'bilinear'.
    """

    def __init__(self, mode: str, in_channels: int, out_channels: int, project: bool) -> None:
        super().__init__()
        self.mode = mode
        self.project_first = project and mode == "nearest"
        self.project = ConvBNReLU(in_channels, out_channels) if project else None

    def forward(self, x: Tensor, size: Size, scale: Tensor | Affine) -> Tensor:
        """[B, C_in, h, w] -> [B, C_out, *size]; ``scale`` is a factor, or a projection's weight and bias of its BN."""
        if self.project is None:
            return self._resized(x, size) * scale if self.mode == "max" else self._resized(x * scale, size)
        height, width = spatial_size(x)
        rows, columns = size[0] / height, size[1] / width
        # powers of 2 alone: for others torch computes the nearest position with a rounded ratio
        if self.project_first and rows in EQUAL_REPEATS and columns in EQUAL_REPEATS:
            return self._resized(self.project(x, scale, rows * columns), size)
        return self.project(self._resized(x, size), scale)

    def _resized(self, x: Tensor, size: Size) -> Tensor:
        return max_pool_to(x, size) if self.mode == "max" else upsample_to(x, size, self.mode)
