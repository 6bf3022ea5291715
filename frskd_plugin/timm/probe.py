"""One look at a timm model before it is wrapped: its feature maps, its cost, and whether it can be split at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frskd_plugin.core.dry_run import evaluating, image_channels

PROBE_BATCH = 2
DEFAULT_INPUT_SIZE = (3, 224, 224)
# The two passes do the same arithmetic and agree to the last bit where kernels are deterministic; CUDA's need not be.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class StudentProbe:
    """What one forward pass showed.

    Attributes:
        input_size: channels, height and width of the images.
        maps: channels, height and width of every feature map that the model hands out, in its own order.
        num_classes: width of the logits.
        macs: multiply-accumulates of one image.
    """

    input_size: tuple[int, int, int]
    maps: tuple[tuple[int, int, int], ...]
    num_classes: int
    macs: int


def split_forward(model: nn.Module, images: Tensor, indices: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
    """Feature maps ``[B, C_i, H_i, W_i]`` and logits ``[B, K]`` in one pass, without hooks.

    Args:
        model: a timm model.
        images: [B, C, H, W].
        indices: which maps, in the order in which they are wanted; None: all, in the model's own.
    """
    # `forward_intermediates` takes ascending indices and gives its maps in that order
    ascending = None if indices is None else sorted(indices)
    last, feats = model.forward_intermediates(images, indices=ascending, output_fmt="NCHW")
    if indices is not None and ascending is not None:
        feats = [feats[ascending.index(i)] for i in indices]
    logits = model.forward_head(last)
    if isinstance(logits, tuple):  # DeiT and its like in distilled training: a classifier each for two tokens
        logits = sum(logits) / len(logits)  # as the model does in evaluation
    return list(feats), logits


def probe_student(model: nn.Module, input_size: Sequence[int] | None = None) -> StudentProbe:
    """Run the model once as it is and once split, in eval mode and on random images; nothing of it changes.

    Args:
        model: a timm model with a classifier.
        input_size: channels, height and width of the images; None: what timm says of the model.

    Raises:
        TypeError: it is no timm model.
        ValueError: it cannot be split into feature maps and classifier, or the two passes disagree.
    """
    name = type(model).__name__
    missing = [attr for attr in ("forward_intermediates", "forward_head") if not hasattr(model, attr)]
    if missing:
        raise TypeError(
            f"{name} has no {' and no '.join(missing)}: expected a classifier of timm, such as "
            f"timm.create_model('resnet18', num_classes=100)."
        )
    if getattr(model, "num_classes", None) == 0:
        raise ValueError(f"{name} has no classifier (num_classes=0): create it with the number of your classes.")
    size = _input_size(model, input_size)
    images = _random_images(model, size)
    with evaluating(model):
        try:
            logits = model(images)
            with FlopCounterMode(display=False) as counter:
                feats, split_logits = split_forward(model, images, None)
        except Exception as error:  # whatever a model raises for a size or a layout it cannot take
            raise ValueError(
                f"{name} failed on images {list(images.shape)}: {type(error).__name__}: {error}. If it takes another "
                f"image size, give it as input_size=(channels, height, width)."
            ) from error
    _check_logits(name, logits, split_logits)
    _check_maps(name, feats)
    maps = tuple((f.shape[1], f.shape[2], f.shape[3]) for f in feats)
    return StudentProbe(size, maps, logits.shape[1], counter.get_total_flops() // 2 // PROBE_BATCH)


def _input_size(model: nn.Module, input_size: Sequence[int] | None) -> tuple[int, int, int]:
    """The user's, or that of the entry in timm, as the arguments in_chans=... and img_size=... have changed it."""
    if input_size is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        _, *size = cfg.get("input_size", DEFAULT_INPUT_SIZE)
        # whichever module was made for one image size keeps it: the model itself, or the first layer that cuts patches
        made_for = (getattr(module, "img_size", None) for module in model.modules())
        size = next((pair for pair in made_for if isinstance(pair, tuple) and len(pair) == 2), size)
        input_size = (image_channels(model), *size)
    if (
        not isinstance(input_size, Sequence)
        or len(input_size) != 3
        or any(not isinstance(n, int) or n < 1 for n in input_size)
    ):
        raise ValueError(f"`input_size` must be (channels, height, width), e.g. (3, 32, 32), got {input_size!r}.")
    channels, height, width = input_size
    return channels, height, width


def _random_images(model: nn.Module, size: tuple[int, int, int]) -> Tensor:
    """Images on the model's device; the caller's random numbers stay as they are."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(PROBE_BATCH, *size, generator=generator).to(parameter.device, parameter.dtype)


def _check_logits(name: str, logits: Tensor, split_logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} must give logits [B, num_classes] for images [B, C, H, W], got {got}.")
    if logits.is_meta:
        return
    tolerance = TOLERANCE.get(logits.dtype, 1e-4)
    if split_logits.shape != logits.shape or not torch.allclose(
        split_logits, logits, rtol=tolerance, atol=tolerance, equal_nan=True
    ):
        raise ValueError(
            f"{name} cannot be split: forward_head(forward_intermediates(x)) does not give the logits of model(x), so "
            "the self-teacher would train another network than the one that is deployed."
        )


def _check_maps(name: str, feats: Sequence[Tensor]) -> None:
    for index, feat in enumerate(feats):
        if feat.ndim != 4:
            raise ValueError(f"{name}: feature map {index} is not [B, C, H, W] but {list(feat.shape)}.")
