"""Turn a plain config of mmsegmentation into the FRSKD one, with the channels found by a dry run."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from frskd_plugin.core.checks import check_not_negative, check_positive_int, check_temperature
from frskd_plugin.methods.base import StudentInfo
from frskd_plugin.methods.frskd import CHANNEL_STEP, check_width, teacher_share, width_within
from frskd_plugin.mmengine.config_tools import read_config
from frskd_plugin.mmseg.feature_maps import FeatureMaps, feature_channels, image_size_of

PACKAGE = "frskd_plugin"
FRSKD_TYPES = {
    "EncoderDecoder": "FRSKDEncoderDecoder",
    "CascadeEncoderDecoder": "FRSKDCascadeEncoderDecoder",
}
DEFAULT_MAX_SHARE = 0.5  # the self-teacher's copy of the decode head comes on top
PAPER_WIDTH, PAPER_BETA, PAPER_IMAGE_SIZE = 1, 50.0, (512, 512)  # of its segmentors


@dataclass(frozen=True)
class TeacherPlan:
    """Self-teacher that suits a segmentor.

    Attributes:
        maps: the segmentor's feature maps.
        width: of the feature network.
        max_channels: limit to its channels; None: no limit.
        share: its multiply-accumulates / the segmentor's, both for one image.
    """

    maps: FeatureMaps
    width: int
    max_channels: int | None
    share: float

    @property
    def head_share(self) -> float:
        """Return the decode head's share of the multiply-accumulates: about what the self-teacher's copy adds."""
        return self.maps.head_macs / self.maps.macs

    def self_teacher(self, alpha: float, beta: float, temperature: float) -> dict[str, Any]:
        """Return the config of the self-teacher."""
        neck = dict(type="SelfTeacherNeck", in_channels=list(self.maps.channels), width=self.width)
        if self.max_channels is not None:
            neck["max_channels"] = self.max_channels
        made: dict[str, Any] = dict(type="FRSKDHead", neck=neck)
        if not self.maps.in_order:
            made["feat_indices"] = list(self.maps.indices)
        if self.maps.extra_levels:
            made["extra_levels"] = self.maps.extra_levels
        made["loss_distill"] = dict(type="FRSKDLoss", alpha=alpha, beta=beta, temperature=temperature)
        if self.maps.binary:  # one logit a pixel has no softmax
            made["loss_distill"]["soft_label"] = "sigmoid"
        return made


def frskd_config(
    config: Config | str | Path,
    *,
    alpha: float = 1.0,
    beta: float | None = None,
    temperature: float = 1.0,
    width: int | str = "auto",
    max_share: float = DEFAULT_MAX_SHARE,
    max_channels: int | None = None,
    image_size: Sequence[int] | None = None,
) -> Config:
    """Return the config that trains the same segmentor with FRSKD.

    The segmentor is built without pretrained weights and run once, to see its feature maps; data sets are not touched.

    Args:
        config: a plain config of mmsegmentation, or its file; it is not changed.
        alpha: weight of the soft labels.
        beta: weight of the feature distillation; None: what fits the images, see `fitting_beta`.
        temperature: of the soft labels.
        width: of the self-teacher's feature network; 'auto': 1 as in the paper, with a limit to the channels where its
            multiply-accumulates would be more than ``max_share`` of the segmentor's (8 channels where none suffices).
        max_share: for ``width='auto'``.
        max_channels: limit to the feature network's channels.
        image_size: height and width of the images of the dry run; None: what the config trains with.

    Returns:
        The config with another ``model.type``, ``model.self_teacher``, and this package in ``custom_imports``.

    Raises:
        TypeError: it is neither a config nor a path.
        ValueError: the config is of FRSKD already, is not of a segmentor that can be served, or cannot be run; or a
            setting is out of range.
    """
    plain = plain_config(config)
    weights = checked_weights(plain, alpha, beta, temperature, image_size)  # before the dry run takes its time
    plan = plan_self_teacher(plain, width, max_share, max_channels, image_size)
    made = copy.deepcopy(plain)
    made.custom_imports = merged_imports(plain)
    made.model.type = frskd_type(plain)
    made.model.self_teacher = plan.self_teacher(*weights)
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
    if name == "TimmClassifier":
        raise ValueError(
            "the config is of a classifier (TimmClassifier): set model.method=dict(name='frskd', ...), or train with "
            "tools/train.py --method frskd."
        )
    if name not in FRSKD_TYPES:
        raise ValueError(
            f"model.type={name!r} is not a segmentor that FRSKD serves: expected {' or '.join(FRSKD_TYPES)}."
        )
    if not model.get("decode_head"):
        raise ValueError("the config's segmentor has no `decode_head`, whose logits FRSKD distils: give it one.")
    return FRSKD_TYPES[name]


def plan_self_teacher(
    config: Config,
    width: int | str = "auto",
    max_share: float = DEFAULT_MAX_SHARE,
    max_channels: int | None = None,
    image_size: Sequence[int] | None = None,
) -> TeacherPlan:
    """Look at the segmentor's maps and choose the self-teacher's size.

    The settings are those of `frskd_config`.
    """
    check_width(width)
    if max_channels is not None:
        check_positive_int("max_channels", max_channels)
    maps = feature_channels(config, image_size)
    # the classifier that is counted with the feature network there has one output and costs nothing
    student = StudentInfo(nn.Identity(), maps.channels, maps.sizes, 1, maps.macs, (3, *maps.image_size))
    if width == "auto":
        if not max_share > 0:
            raise ValueError(f"`max_share` must be > 0 (self-teacher's MACs / segmentor's MACs), got {max_share}.")
        try:
            width, max_channels = width_within(student, max_share, max_channels, widths=(PAPER_WIDTH,))
        except ValueError:  # the network is so cheap that nothing keeps within the share: the least that there is
            width, max_channels = 1, min(max_channels or CHANNEL_STEP, CHANNEL_STEP)
    share = teacher_share(student, int(width), max_channels)
    return TeacherPlan(maps, int(width), max_channels, share)


def checked_weights(
    config: Config, alpha: float, beta: float | None, temperature: float, image_size: Sequence[int] | None = None
) -> tuple[float, float, float]:
    """Return the settings of the distillation terms, after a check; a beta of None becomes `fitting_beta`."""
    beta = fitting_beta(image_size_of(config, image_size)) if beta is None else beta
    return check_not_negative("alpha", alpha), check_not_negative("beta", beta), check_temperature(temperature)


def fitting_beta(image_size: tuple[int, int]) -> float:
    """Return the beta for images of a height and width: the paper's 50 at 512x512, in proportion to the pixels.

    The feature loss is a mean over positions of maps of unit norm, so the same disagreement counts less as maps grow.

    >>> fitting_beta((512, 512)), fitting_beta((512, 1024)), fitting_beta((256, 256))
    (50.0, 100.0, 12.5)
    """
    return round(PAPER_BETA * math.prod(image_size) / math.prod(PAPER_IMAGE_SIZE), 2)


def merged_imports(config: Config) -> dict[str, Any]:
    """Return the config's ``custom_imports`` with this package among them.

    >>> merged_imports(Config(dict(custom_imports=dict(imports="mine"))))
    {'imports': ['mine', 'frskd_plugin']}
    """
    merged = dict(copy.deepcopy(config.get("custom_imports")) or {})
    names = merged.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    merged["imports"] = names if PACKAGE in names else [*names, PACKAGE]
    return merged
