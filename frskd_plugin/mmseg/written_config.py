"""Text of an FRSKD config that stands on a plain one, with comments for whoever tunes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmseg
from mmengine.config import Config

from frskd_plugin.mmseg.convert import TeacherPlan, frskd_type, merged_imports

SHIPPED = ".mim/configs"  # where mmsegmentation keeps its configs, below the installed package
WARM_UP_SHARE = 2 / 3  # the paper's segmentors distil after 40 of 60 epochs (reference section 9)
# settings that tell how the maps of a network become levels, and why they are there
WIRING = {
    "feat_indices": "The network hands its maps out in another order: this is the place of each in its own.",
    "extra_levels": "The network hands out one map; the feature network fuses at least two, so it is pooled once.",
}
TEMPLATE = """\
# FRSKD for {name}, written by `frskd convert`. All settings may be changed;
# `frskd check THIS_FILE` shows in one dry step what each of them does.
_base_ = [{base}]

custom_imports = {imports}

model = dict(
    type={type!r},
    self_teacher=dict(
        type='FRSKDHead',
        # The maps behind backbone and neck in training, highest resolution first: strides {strides}
        # of {images} images. width multiplies their channels (the paper's is 1 to segment), max_channels limits them.
        # This network costs {cost},
        # forward, in each step of the training. Inference costs nothing more.
        neck={neck},
{wiring}        # Loss: the segmentor's + the self-teacher's own + alpha * KL(soft labels) + beta * (attention maps).
        # alpha, temperature: the paper takes 1 and 1 to segment.
        # beta: the distance is a mean over the H x W positions of maps of unit norm, so it falls with 1 / (H * W): for
        # images of twice the side take four times the beta (50 is the paper's, at 512x512). With
        # feature_reduction='batchmean' it does not depend on the resolution, and wants a beta of its own.
        # beta=0 leaves soft labels alone, alpha=0 attention maps alone.
        loss_distill={loss_distill},
    ),
)

# The paper's segmentors distil in the last third of the training only; then alpha and beta rise as exp(-5 (1 - t)^2).
# The second hook scores the self-teacher too at each validation (val_evaluator.type='SelfTeacherIoUMetric' shows it).
# custom_hooks = [{base_hooks}
#     dict(type='DistillWarmupHook', begin={begin}, by_epoch={by_epoch}),
#     dict(type='SelfTeacherValidationHook'),
# ]
"""


def config_text(config: Config, plan: TeacherPlan, target: str | Path) -> str:
    """Return the source of the FRSKD config that is to be written to ``target``, with comments for whoever tunes it.

    The plain config was read from a file; a relative path to it starts from the folder of ``target``.
    """
    source = Path(config.filename)
    train_cfg = config.get("train_cfg") or {}
    length = train_cfg.get("max_epochs") or train_cfg.get("max_iters") or 0
    return TEMPLATE.format(
        name=source.name,
        base=base_expression(source, target),
        imports=_call(merged_imports(config)),
        type=frskd_type(config),
        strides=", ".join(map(str, plan.maps.strides)),
        images="{}x{}".format(*plan.maps.image_size),
        cost=plan.cost,
        neck=_call(plan.config["neck"]),
        wiring="".join(
            f"        # {reason}\n        {key}={plan.config[key]},\n"
            for key, reason in WIRING.items()
            if key in plan.config
        ),
        loss_distill=_call(plan.config["loss_distill"]),
        base_hooks="*_base_.custom_hooks," if config.get("custom_hooks") else "",
        begin=round(WARM_UP_SHARE * length),
        by_epoch="max_epochs" in train_cfg,
    )


def _call(settings: Mapping[str, Any]) -> str:
    return f"dict({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def base_expression(source: Path, target: str | Path) -> str:
    """Return Python for the path of the plain config, as it stands in ``_base_``.

    A config that mmsegmentation ships is found in the installed package, wherever that is; any other by a path relative
    to ``target``, or an absolute one where the two share nothing but the root of the file system.
    """
    source, folder = source.resolve(), Path(target).resolve().parent
    package = Path(mmseg.__path__[0]).resolve() / SHIPPED
    if source.is_relative_to(package):
        return f"__import__('mmseg').__path__[0] + {f'/{SHIPPED}/{source.relative_to(package).as_posix()}'!r}"
    try:
        apart = os.path.commonpath([source, folder]) == source.anchor
    except ValueError:  # two drives
        apart = True
    return repr(source.as_posix() if apart else Path(os.path.relpath(source, folder)).as_posix())


def find_config(name: str | Path) -> Path:
    """Return a config file as it is named, or as mmsegmentation ships it: ``mmseg::fcn/NAME.py``, ``fcn/NAME.py``."""
    shipped = Path(mmseg.__path__[0]) / SHIPPED
    for path in (Path(name), shipped / str(name).removeprefix("mmseg::")):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"config {name} not found, neither as a file nor in {shipped}; expected a Python config of mmsegmentation, "
        "such as my_fcn.py or mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py"
    )
