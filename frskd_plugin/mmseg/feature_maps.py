"""One dry run of a segmentor: channels and sizes of the maps that its decode head receives, and the cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode

from frskd_plugin.core.dry_run import forked_rng, image_channels
from frskd_plugin.mmengine.config_tools import explained_build, without_pretrained
from frskd_plugin.mmseg.student_outputs import flat_maps, select_maps

DEFAULT_IMAGE_SIZE = (512, 512)
SMALL_SIZE = (64, 128)  # for a run on the CPU; 1/32 of it still has two rows, and the sides differ
TRAIN_BATCH = 2  # batch normalisation of a pooled 1x1 map needs two images


@dataclass(frozen=True)
class FeatureMaps:
    """The maps behind backbone and neck in training, highest resolution first, as a self-teacher receives them.

    Attributes:
        channels: of each level.
        sizes: height and width of each level, for images of ``image_size``.
        indices: place of each map in what the network hands out.
        extra_levels: how many of the last levels are pooled from the last map, because there is one map alone.
        image_size: height and width of the images that were tried.
        macs: multiply-accumulates of the segmentor for one such image, in evaluation.
        head_macs: those of its decode head(s) among them; 0 where only backbone and neck could be run.
        binary: whether the segmentor has one logit a pixel, for two classes.
    """

    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    indices: tuple[int, ...]
    extra_levels: int
    image_size: tuple[int, int]
    macs: int
    head_macs: int
    binary: bool

    @property
    def strides(self) -> tuple[int, ...]:
        """Return the rows of the image that a row of each level covers."""
        return tuple(round(self.image_size[0] / height) for height, _ in self.sizes)

    @property
    def in_order(self) -> bool:
        """Tell if the network hands all of them out in this very order."""
        return self.indices == tuple(range(len(self.indices)))


def feature_channels(config: Config, image_size: Sequence[int] | None = None) -> FeatureMaps:
    """Build the segmentor of a config without pretrained weights, run it once, and look at its maps.

    It runs on the meta device at the training's image size; where a network needs real numbers, on the CPU, with small
    images if it takes them. Neither the config nor torch's random state changes, and nothing is downloaded.

    Args:
        config: of a plain segmentor of mmseg.
        image_size: height and width; None: what the config trains with.

    Raises:
        ValueError: the model cannot be built or run, or hands out no maps.
    """
    full_size = image_size_of(config, image_size)
    with (
        DefaultScope.overwrite_default_scope(config.get("default_scope") or "mmseg"),
        forked_rng(),
        torch.no_grad(),
    ):
        model = build_plain(config)
        error: Exception | None = None
        is_large = SMALL_SIZE[0] <= full_size[0] and SMALL_SIZE[1] <= full_size[1]
        small = [("cpu", SMALL_SIZE)] if is_large else []
        for device, size in [("meta", full_size), *small, ("cpu", full_size)]:
            try:
                return _look(model.to(device) if device == "meta" else build_plain(config), size)
            except Exception as failure:  # whatever a network raises for a size or a device that it cannot take
                error = failure
    raise ValueError(
        f"the segmentor failed on images {full_size[0]}x{full_size[1]}: {type(error).__name__}: {error}. Check that "
        "the plain config trains; if it takes another image size, give it as image_size=(height, width)."
    ) from error


def image_size_of(config: Config, image_size: Sequence[int] | None = None) -> tuple[int, int]:
    """Return height and width of the training images: those given, the preprocessor's, ``crop_size``, or 512x512."""
    preprocessor = config.model.get("data_preprocessor") or config.get("data_preprocessor") or {}
    size = image_size or preprocessor.get("size") or config.get("crop_size") or DEFAULT_IMAGE_SIZE
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
        raise ValueError(f"`image_size` must be (height, width), such as (512, 512), got {size!r}.")
    return size[0], size[1]


def build_plain(config: Config) -> EncoderDecoder:
    """Return the segmentor with random weights, for a run in one process."""
    with explained_build(config.filename or "of the segmentor"):
        model: EncoderDecoder = MODELS.build(without_pretrained(config.model)[0])
    # torch's FLOP counter hooks what asks for a gradient, which fails on parameters handed to modules under no_grad
    return revert_sync_batchnorm(model).requires_grad_(False)


def _look(model: Any, size: tuple[int, int]) -> FeatureMaps:
    channels = image_channels(model.backbone)
    device = next(model.parameters()).device
    # In training: some networks hand out their branches then only, for the auxiliary heads.
    maps = flat_maps(model.train().extract_feat(torch.randn(TRAIN_BATCH, channels, *size, device=device)))
    order = sorted(range(len(maps)), key=lambda i: -maps[i].shape[-2] * maps[i].shape[-1])  # equal ones keep theirs
    image = torch.randn(1, channels, *size, device=device)
    model.eval()
    with FlopCounterMode(display=False) as trunk:
        model.extract_feat(image)
    head_macs = _head_macs(model, image, trunk.get_total_flops() // 2)
    extra_levels = int(len(maps) == 1)  # the self-teacher fuses at least two levels
    levels = select_maps(maps, order, extra_levels)
    return FeatureMaps(
        channels=tuple(level.shape[1] for level in levels),
        sizes=tuple((level.shape[2], level.shape[3]) for level in levels),
        indices=tuple(order),
        extra_levels=extra_levels,
        image_size=size,
        macs=trunk.get_total_flops() // 2 + head_macs,
        head_macs=head_macs,
        binary=getattr(model, "out_channels", None) == 1,
    )


def _head_macs(model: Any, image: torch.Tensor, trunk_macs: int) -> int:
    """Count multiply-accumulates of the decode head(s); 0 where they ask for more than shapes."""
    try:
        with FlopCounterMode(display=False) as whole:
            model(image, mode="tensor")
    except Exception:  # heads that need ground truth or numbers; the trunk's cost stands for the whole then
        return 0
    return max(whole.get_total_flops() // 2 - trunk_macs, 0)
