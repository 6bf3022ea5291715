"""A config of each family of mmsegmentation on tiny images: trained plain and with FRSKD, then exported."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmseg", reason="the families are mmsegmentation's")

from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS

from frskd_plugin.check import segmentation_batch
from frskd_plugin.commands.support import mmseg_configs, names
from frskd_plugin.mmengine.config_tools import without_pretrained
from frskd_plugin.mmengine.export import student_checkpoint
from frskd_plugin.mmseg.convert import frskd_config
from tests.support.steps import BATCH, LR, Unsupported, check_finite, check_gradients, check_same_logits, describe

pytestmark = [pytest.mark.support, pytest.mark.filterwarnings("ignore")]
IMAGE_SIZES = (64, 128, 256, 512)  # from the smallest on which the plain config runs
MOST_LOGIT = 1e6  # batch normalisation over two single pixels makes gradients explode, more or less by chance
SEED = 0
# Marks of small models in the names of configs, smallest first; names without any come last.
SMALL_MODELS = ("r18", "b0", "tiny", "t", "s", "s12", "s16", "hr18s", "hr18", "base", "b16", "b", "r50", "s101")
COMMON_DATA = ("ade20k", "cityscapes")  # some other data sets want another kind of preprocessor


@pytest.mark.parametrize("family", names("mmseg"))
def test_family(family: str, record_property: Callable[[str, object], None]) -> None:
    """Train the plain config and FRSKD's by one step each, and compare the exported student with the plain model."""
    file = smallest_config(family)
    record_property("config", file.name)
    try:
        plain_config, idle = train_plain(file)
    except Exception as error:  # has nothing to do with FRSKD
        pytest.skip(describe(error))
    size = plain_config.crop_size[0]
    record_property("image", size)

    config = frskd_config(plain_config)
    plain, model = build(plain_config), build(config)
    weights = model.state_dict()
    changed = [name for name, value in plain.state_dict().items() if not torch.equal(value, weights[name])]
    if changed:
        raise Unsupported(f"before training the student has other weights than the plain: {', '.join(changed[:3])}")
    record_property("channels", list(model.self_teacher.neck.in_channels))
    record_property("teacher_head", type(model.self_teacher.head).__name__)

    images, samples = random_batch(model, size)
    losses = train_step(model, images, samples)
    check_finite(losses)
    kinds = ("decode", "self_teacher.loss_kd", "self_teacher.loss_feat")
    if missing := [kind for kind in kinds if not any(name.startswith(kind) for name in losses)]:
        raise Unsupported(f"there is no loss {', '.join(missing)}, only {', '.join(losses)}")
    check_gradients(model, idle)

    exported, exported_config = student_checkpoint(
        {"state_dict": model.state_dict(), "meta": {"cfg": config.pretty_text}}
    )
    if exported_config.model.to_dict() != plain_config.model.to_dict():
        raise Unsupported("the exported config is not the plain one")
    plain.load_state_dict(exported["state_dict"], strict=True)
    check_same_logits(predict(model, images, samples), predict(plain, images, samples))


def smallest_config(family: str) -> Path:
    """Return the config of a family that names the smallest model, on a common data set where there is one."""

    def size(file: Path) -> tuple[int, bool, int, str]:
        marks = [SMALL_MODELS.index(mark) for mark in re.split("[-_]", file.stem) if mark in SMALL_MODELS]
        uncommon = not any(data in file.stem for data in COMMON_DATA)
        return min(marks, default=len(SMALL_MODELS)), uncommon, len(file.stem), file.stem

    return min((mmseg_configs() / family).glob("*.py"), key=size)


def shrunk_config(file: Path, image_size: int, fix_image_size: bool = False) -> Config:
    """Return a config for small images on a CPU, without pretrained weights; all else is the original's.

    ``fix_image_size`` makes a backbone that is made for one image size for this one.
    """
    try:
        config = Config.fromfile(file)
    except ImportError as error:  # mmengine's text is about the path of modules; the first cause names the package
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        raise Unsupported(f"custom_imports: {describe(cause)}") from error
    model = on_cpu(without_pretrained(config.model.to_dict())[0])
    size = (image_size, image_size)
    if (model.get("data_preprocessor") or {}).get("size"):
        model["data_preprocessor"]["size"] = size
    if fix_image_size and "img_size" in (model.get("backbone") or {}):
        model["backbone"]["img_size"] = size
    return Config(dict(default_scope="mmseg", crop_size=size, model=model))


def on_cpu(value: Any) -> Any:
    """Put batch normalisation in place of the synchronised one, which CPUs do not have."""
    if isinstance(value, dict):
        kinds = {"SyncBN": "BN", "MMSyncBN": "BN"}
        return {key: kinds.get(item, item) if key == "type" else on_cpu(item) for key, item in value.items()}
    return type(value)(on_cpu(item) for item in value) if isinstance(value, (list, tuple)) else value


def train_plain(file: Path) -> tuple[Config, list[str]]:
    """Train by one step on the smallest images; return the config for them, and the parameters without a gradient.

    Each size is tried with the model as the config makes it and, where its backbone is made for one image size, with
    the model made for this one. The error of the last size is raised where none works.
    """
    error: Exception | None = None
    for size in IMAGE_SIZES:
        for fixed in (False, True):
            config = shrunk_config(file, size, fixed)
            if fixed and "img_size" not in (config.model.get("backbone") or {}):
                continue
            model = build(config)  # an error here is no matter of the size
            try:
                images, samples = random_batch(model, size)
                check_finite(train_step(model, images, samples))
                if not predict(model, images, samples).abs().max() < MOST_LOGIT:  # nor is it NaN
                    raise Unsupported("after the step its logits are too large")
            except Exception as caught:  # whatever a model raises for a size that it cannot take
                error = caught
                continue
            return config, [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert error is not None
    raise error


def build(config: Config) -> Any:
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(SEED)
        model = MODELS.build(ConfigDict(config.model.to_dict()))
        model.init_weights()
    return model


def random_batch(model: Any, size: int) -> tuple[Tensor, list[Any]]:
    """Return random images with random labels, and random edges for the heads that learn these."""
    torch.manual_seed(SEED)
    images, samples = segmentation_batch(BATCH, (size, size), model.num_classes, "cpu")
    for sample in samples:
        sample.gt_edge_map = PixelData(data=torch.randint(2, (1, size, size)).float())
    return images, samples


def train_step(model: Any, images: Tensor, samples: list[Any]) -> dict[str, Any]:
    """Return the terms of the loss; gradients stay in place."""
    torch.manual_seed(SEED)
    optimizer = torch.optim.SGD([p for p in model.train().parameters() if p.requires_grad], lr=LR)
    losses = model.loss(images, samples)
    model.parse_losses(losses)[0].backward()
    optimizer.step()
    return losses


@torch.no_grad()
def predict(model: Any, images: Tensor, samples: list[Any]) -> Tensor:
    """Return the logits [B, C, H, W] in evaluation."""
    torch.manual_seed(SEED)  # LightHamHead draws its bases also in evaluation
    results = model.eval().predict(images, [sample.clone() for sample in samples])
    return torch.stack([result.seg_logits.data for result in results])
