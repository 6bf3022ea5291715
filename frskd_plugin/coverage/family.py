"""One config of mmsegmentation: a plain training step, and all that FRSKD promises of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.segmentors.encoder_decoder import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor

from frskd_plugin.check import segmentation_batch
from frskd_plugin.coverage.families import shrunk_config
from frskd_plugin.coverage.fault import Fault, check_finite, check_gradients
from frskd_plugin.mmengine.export import student_checkpoint
from frskd_plugin.mmseg.convert import frskd_config

BATCH = 2
LR = 1e-3
IMAGE_SIZES = (64, 128, 256, 512)  # from the smallest on which the plain config runs
SEED = 0


def examine_plain(file: str) -> dict[str, Any]:
    """Train a plain config by one step, on the smallest images that it takes.

    Each size is tried with the model as the config makes it and, where its backbone is made for one image size, with
    the model made for this one.

    Returns:
        ``image``: height and width. ``fixed``: whether the backbone was made for it. ``idle``: names of the parameters
        that get no gradient.

    Raises:
        Exception: what the last size raised.
    """
    error: Exception | None = None
    for size in IMAGE_SIZES:
        for fixed in (False, True):
            config = shrunk_config(Path(file), size, fixed)
            if fixed and "img_size" not in (config.model.get("backbone") or {}):
                continue
            model = _build(config)  # an error here is no matter of the size
            try:
                images, samples = _batch(model, size)
                check_finite(_train_step(model, images, samples))
                # batch normalisation over two single pixels makes gradients explode
                _check_finite_logits(_predict(model, images, samples))
            except Exception as caught:  # whatever a model raises for a size that it cannot take
                error = caught
                continue
            idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
            return {"image": size, "fixed": fixed, "idle": idle}
    raise error or Fault("there is no image size to try")


def examine_frskd(file: str, image: int, fixed: bool, idle: list[str]) -> dict[str, Any]:
    """Turn the config into FRSKD's, train it by one step, and compare the exported student with the plain model.

    Args:
        file: of the plain config.
        image: height and width of the images.
        fixed: whether the backbone is made for that size.
        idle: parameters that the plain config leaves without a gradient.

    Returns:
        ``channels`` of the distilled maps, and ``teacher_head``, the class of the self-teacher's head.

    Raises:
        Fault: a promise is not kept; it says which.
        Exception: whatever the model raises.
    """
    plain_config = shrunk_config(Path(file), image, fixed)
    config = frskd_config(plain_config)
    plain, model = _build(plain_config), _build(config)
    _check_same(plain.state_dict(), model.state_dict(), "before training the student has other weights than the plain")

    images, samples = _batch(model, image)
    losses = _train_step(model, images, samples)
    check_finite(losses)
    kinds = ("decode", "self_teacher.loss_kd", "self_teacher.loss_feat")
    missing = [kind for kind in kinds if not any(name.startswith(kind) for name in losses)]
    if missing:
        raise Fault(f"there is no loss {', '.join(missing)}, only {', '.join(losses)}")
    check_gradients(model, idle)

    exported, exported_config = student_checkpoint(
        {"state_dict": model.state_dict(), "meta": {"cfg": config.pretty_text}}
    )
    if exported_config.model.to_dict() != plain_config.model.to_dict():
        raise Fault("the exported config is not the plain one")
    plain.load_state_dict(exported["state_dict"], strict=True)
    logits, expected = _predict(model, images, samples), _predict(plain, images, samples)
    _check_finite_logits(logits)
    if not torch.equal(logits, expected):
        raise Fault("in evaluation it does not give the plain model's logits")
    return {
        "channels": list(model.self_teacher.neck.in_channels),
        "teacher_head": type(model.self_teacher.head).__name__,
    }


def _build(config: Config) -> EncoderDecoder:
    """From one seed each time."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(SEED)
        model = MODELS.build(ConfigDict(config.model.to_dict()))
        model.init_weights()
    return model


def _batch(model: EncoderDecoder, size: int) -> tuple[Tensor, SampleList]:
    """Random images with random labels, and random edges for the heads that learn these."""
    torch.manual_seed(SEED)
    images, samples = segmentation_batch(BATCH, (size, size), model.num_classes, "cpu")
    for sample in samples:
        sample.gt_edge_map = PixelData(data=torch.randint(2, (1, size, size)).float())
    return images, samples


def _train_step(model: EncoderDecoder, images: Tensor, samples: SampleList) -> dict[str, Any]:
    """The terms of the loss; gradients stay in place."""
    torch.manual_seed(SEED)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    losses = model.loss(images, samples)
    model.parse_losses(losses)[0].backward()
    optimizer.step()
    return losses


@torch.no_grad()
def _predict(model: EncoderDecoder, images: Tensor, samples: SampleList) -> Tensor:
    torch.manual_seed(SEED)  # LightHamHead draws its bases also in evaluation
    results = model.eval().predict(images, [sample.clone() for sample in samples])
    return torch.stack([result.seg_logits.data for result in results])


def _check_finite_logits(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise Fault("after the step its logits are not finite")


def _check_same(expected: dict[str, Tensor], weights: dict[str, Tensor], message: str) -> None:
    different = [name for name, value in expected.items() if not torch.equal(value, weights[name])]
    if different:
        raise Fault(f"{message}: {', '.join(different[:3])}")
