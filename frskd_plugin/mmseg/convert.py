"""Turn a plain config of mmsegmentation into the FRSKD one, with the channels found by a dry run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from frskd_plugin.core.checks import check_not_negative, check_positive_int, check_temperature
from frskd_plugin.core.dry_run import forked_rng, image_channels
from frskd_plugin.methods.base import StudentInfo
from frskd_plugin.methods.frskd import CHANNEL_STEP, check_width, teacher_share, width_within
from frskd_plugin.mmengine.config_tools import explained_build, read_config, without_pretrained
from frskd_plugin.mmseg.heads import flat_maps, select_maps

FRSKD_TYPES = {"EncoderDecoder": "FRSKDEncoderDecoder", "CascadeEncoderDecoder": "FRSKDCascadeEncoderDecoder"}
DEFAULT_MAX_SHARE = 0.5  # the self-teacher's copy of the decode head comes on top
PAPER_WIDTH, PAPER_BETA, PAPER_IMAGE_SIZE = 1, 50.0, (512, 512)  # of its segmentors
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
    """

    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    indices: tuple[int, ...]
    extra_levels: int
    image_size: tuple[int, int]
    macs: int
    head_macs: int

    @property
    def strides(self) -> tuple[int, ...]:
        """Return the rows of the image that a row of each level covers."""
        return tuple(round(self.image_size[0] / height) for height, _ in self.sizes)


@dataclass(frozen=True)
class TeacherPlan:
    """Self-teacher that suits a segmentor's maps: its config, and its feature network's MACs / the segmentor's."""

    maps: FeatureMaps
    config: dict[str, Any]
    share: float

    @property
    def cost(self) -> str:
        """Return the share in words; the self-teacher's copy of the decode head adds about what the head costs."""
        head = f" (its decode head: about {self.maps.head_macs / self.maps.macs:.2f} more)"
        return f"{self.share:.2f} of the segmentor's multiply-accumulates{head if self.maps.head_macs else ''}"


def frskd_config(config: Config | str | Path, **settings: Any) -> Config:
    """Return the config that trains the same segmentor with FRSKD, see `feature_channels`; data sets are not touched.

    Args:
        config: a plain config of mmsegmentation, or its file; it is not changed.
        **settings: of `plan_self_teacher`: ``alpha``, ``beta``, ``temperature``, ``width``, ``max_share``,
            ``max_channels`` and ``image_size``.

    Returns:
        The config with another ``model.type``, ``model.self_teacher``, and this package in ``custom_imports``.

    Raises:
        TypeError: it is neither a config nor a path.
        ValueError: the config is of FRSKD already, is not of a segmentor that can be served, or cannot be run; or a
            setting is out of range.
    """
    made = copy.deepcopy(plain_config(config))
    plan = plan_self_teacher(made, **settings)
    made.custom_imports = merged_imports(made)
    made.model.type = frskd_type(made)
    made.model.self_teacher = plan.config
    return made


def plain_config(config: Config | str | Path) -> Config:
    """Return the config, read if it is a file, after the check that it can be turned into FRSKD."""
    if isinstance(config, (str, Path)):
        config = read_config(config)
    if not isinstance(config, Config):
        raise TypeError(
            f"expected a Config of mmengine or the path of a config file, got {type(config).__name__}; "
            "mmengine.Config(dict(model=...)) makes one of a dict."
        )
    frskd_type(config)
    return config


def frskd_type(config: Config) -> str:
    """Return the name of the segmentor that trains the config's model with FRSKD; without one, raise a ValueError."""
    model = config.get("model")
    if not model:
        raise ValueError("the config has no `model`: give the config of a whole training, not a part of one (_base_).")
    kind = model.get("type")
    name = str(kind if isinstance(kind, str) else getattr(kind, "__name__", kind)).rpartition(".")[2]
    if name in FRSKD_TYPES.values() or "self_teacher" in model:
        raise ValueError(
            f"the config is of FRSKD already (model.type={name!r}): give the plain config that it is made of, or "
            "change its `model.self_teacher`."
        )
    if name not in FRSKD_TYPES:
        raise ValueError(
            f"model.type={name!r} is not a segmentor that FRSKD serves: expected {' or '.join(FRSKD_TYPES)}. "
            "A classifier (TimmClassifier) trains with it by `frskd train --method frskd`."
        )
    if not model.get("decode_head"):
        raise ValueError("the config's segmentor has no `decode_head`, whose logits FRSKD distils: give it one.")
    return FRSKD_TYPES[name]


def plan_self_teacher(
    config: Config,
    *,
    alpha: float = 1.0,
    beta: float | None = None,
    temperature: float = 1.0,
    width: int | str = "auto",
    max_share: float = DEFAULT_MAX_SHARE,
    max_channels: int | None = None,
    image_size: Sequence[int] | None = None,
) -> TeacherPlan:
    """Look at the segmentor's maps and choose the self-teacher's size.

    Args:
        config: a plain config, see `plain_config`.
        alpha: weight of the soft labels.
        beta: weight of the feature distillation; None: the paper's 50 at 512x512, in proportion to the pixels.
        temperature: of the soft labels.
        width: of the self-teacher's feature network; 'auto': 1 as in the paper, with a limit to the channels where its
            multiply-accumulates would be more than ``max_share`` of the segmentor's (8 channels where none suffices).
        max_share: for ``width='auto'``.
        max_channels: limit to the feature network's channels.
        image_size: height and width of the images of the dry run; None: what the config trains with.
    """
    if beta is None:
        # A mean over positions of maps of unit norm: the same disagreement counts less as maps grow.
        pixels = math.prod(image_size_of(config, image_size))
        beta = round(PAPER_BETA * pixels / math.prod(PAPER_IMAGE_SIZE), 2)
    loss_distill = {
        "type": "FRSKDLoss",
        "alpha": check_not_negative("alpha", alpha),
        "beta": check_not_negative("beta", beta),
        "temperature": check_temperature(temperature),
    }
    check_width(width)
    if max_channels is not None:
        check_positive_int("max_channels", max_channels)
    if width == "auto" and not max_share > 0:
        raise ValueError(f"`max_share` must be > 0 (self-teacher's MACs / segmentor's MACs), got {max_share}.")
    maps = feature_channels(config, image_size)
    # the classifier that is counted with the feature network there has one output and costs nothing
    student = StudentInfo(nn.Identity(), maps.channels, maps.sizes, 1, maps.macs, (3, *maps.image_size))
    if width == "auto":
        try:
            width, max_channels = width_within(student, max_share, max_channels, widths=(PAPER_WIDTH,))
        except ValueError:  # the network is so cheap that nothing keeps within the share: the least that there is
            width, max_channels = 1, min(max_channels or CHANNEL_STEP, CHANNEL_STEP)
    neck = {"type": "SelfTeacherNeck", "in_channels": list(maps.channels), "width": int(width)}
    if max_channels is not None:
        neck["max_channels"] = max_channels
    made: dict[str, Any] = {"type": "FRSKDHead", "neck": neck}
    if maps.indices != tuple(range(len(maps.indices))):
        made["feat_indices"] = list(maps.indices)
    if maps.extra_levels:
        made["extra_levels"] = maps.extra_levels
    made["loss_distill"] = loss_distill
    return TeacherPlan(maps, made, teacher_share(student, int(width), max_channels))


def feature_channels(config: Config, image_size: Sequence[int] | None = None) -> FeatureMaps:
    """Build a config's plain segmentor without pretrained weights and run it once, to see its maps and its cost.

    It runs on torch's meta device, which computes shapes alone; a network that needs numbers (the height of its tokens,
    say) runs on the CPU instead, with small images where it takes them.

    Raises:
        ValueError: the model cannot be built or run, or hands out no maps.
    """
    full_size = image_size_of(config, image_size)
    is_large = SMALL_SIZE[0] <= full_size[0] and SMALL_SIZE[1] <= full_size[1]
    small = [("cpu", SMALL_SIZE)] if is_large else []
    with DefaultScope.overwrite_default_scope(config.get("default_scope") or "mmseg"), forked_rng(), torch.no_grad():
        model = build_plain(config)
        error: Exception | None = None
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
    size = image_size or preprocessor.get("size") or config.get("crop_size") or PAPER_IMAGE_SIZE
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
    extra_levels = int(len(maps) == 1)  # the self-teacher fuses at least two levels
    levels = select_maps(maps, order, extra_levels)
    image = torch.randn(1, channels, *size, device=device)
    model.eval()
    trunk_macs = _macs(lambda: model.extract_feat(image))
    try:
        macs = max(_macs(lambda: model(image, mode="tensor")), trunk_macs)
    except Exception:  # heads that need ground truth or numbers; the trunk's cost stands for the whole then
        macs = trunk_macs
    return FeatureMaps(
        channels=tuple(level.shape[1] for level in levels),
        sizes=tuple((level.shape[2], level.shape[3]) for level in levels),
        indices=tuple(order),
        extra_levels=extra_levels,
        image_size=size,
        macs=macs,
        head_macs=macs - trunk_macs,
    )


def _macs(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def merged_imports(config: Config) -> dict[str, Any]:
    """Return the config's ``custom_imports`` with this package among them.

    >>> merged_imports(Config(dict(custom_imports=dict(imports="mine"))))
    {'imports': ['mine', 'frskd_plugin']}
    """
    merged = dict(copy.deepcopy(config.get("custom_imports")) or {})
    names = merged.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    merged["imports"] = names if "frskd_plugin" in names else [*names, "frskd_plugin"]
    return merged
