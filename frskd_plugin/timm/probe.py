"""Dry run of a timm model before it is wrapped: its feature maps and which of them to take, its cost, and the split."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frskd_plugin.core.dry_run import PROBE_BATCH, evaluating, image_channels, probe_images
from frskd_plugin.methods.base import StudentInfo

DEFAULT_INPUT_SIZE = (3, 224, 224)
NUM_MAPS = 4  # levels of the usual pyramid
# The two passes do the same arithmetic and agree to the last bit where kernels are deterministic; CUDA's need not be.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def split_forward(model: nn.Module, images: Tensor, indices: Sequence[int] | None) -> tuple[list[Tensor], Tensor]:
    """Return a timm model's maps [B, C_i, H_i, W_i] and logits [B, K] for images [B, C, H, W] in one pass.

    ``indices`` says which maps, in the order in which they are wanted; None: all, in the model's own.
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


def maps_alone(model: nn.Module, images: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """Return the maps of `split_forward`; what lies behind the last one is not run, and may be gone from the model."""
    ascending = sorted(indices)
    feats = model.forward_intermediates(images, indices=ascending, output_fmt="NCHW", intermediates_only=True)
    return [feats[ascending.index(i)] for i in indices]


def probe_student(model: nn.Module, input_size: Sequence[int] | None = None) -> StudentInfo:
    """Run a timm classifier once as it is and once split, in eval mode and on random images; nothing of it changes.

    Returns:
        The facts of all its maps, in the order in which it hands them out.

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
    num_classes = getattr(model, "num_classes", 1)
    if num_classes is not None and num_classes < 1:
        raise ValueError(
            f"{name} has no classifier (num_classes={num_classes}): create it with the number of your classes."
        )
    size = usual_input_size(model, input_size)
    images = probe_images(model, size)
    with evaluating(model):
        try:
            logits = model(images)
            with FlopCounterMode(display=False) as counter:
                feats, split_logits = split_forward(model, images, None)
        except Exception as error:  # whatever a model raises for a size or a layout it cannot take
            cure = (
                "If it takes another image size, give it as input_size=(channels, height, width)."
                if input_size is None
                else "Give (channels, height, width) that it takes, or create it for these (`img_size`, `in_chans`)."
            )
            found = f"{type(error).__name__}: {error}".rstrip(".")
            raise ValueError(f"{name} failed on images {list(images.shape)}: {found}. {cure}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} must give logits [B, num_classes] for images [B, C, H, W], got {got}.")
    tolerance = TOLERANCE.get(logits.dtype, 1e-4)
    near = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    if not logits.is_meta and not (logits.shape == split_logits.shape and torch.allclose(split_logits, logits, **near)):
        raise ValueError(
            f"{name} cannot be split: forward_head(forward_intermediates(x)) does not give the logits of model(x), so "
            "the self-teacher would train another network than the one that is deployed."
        )
    for index, feat in enumerate(feats):
        if feat.ndim != 4:
            raise ValueError(f"{name}: feature map {index} is not [B, C, H, W] but {list(feat.shape)}.")
    channels, sizes = [feat.shape[1] for feat in feats], [(feat.shape[2], feat.shape[3]) for feat in feats]
    macs = counter.get_total_flops() // 2 // PROBE_BATCH
    return StudentInfo(model, channels, sizes, logits.shape[1], macs, size)


def usual_input_size(model: nn.Module, input_size: Sequence[int] | None = None) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images: the user's, or timm's entry, changed by in_chans and img_size."""
    if input_size is None:
        cfg = getattr(model, "pretrained_cfg", None) or {}
        _, *size = cfg.get("input_size", DEFAULT_INPUT_SIZE)
        # whichever module was made for one image size keeps it: the model itself, or the first layer that cuts patches
        made_for = (getattr(module, "img_size", None) for module in model.modules())
        size = next((pair for pair in made_for if isinstance(pair, tuple) and len(pair) == 2), size)
        input_size = (image_channels(model), *size)
    whole = isinstance(input_size, Sequence) and all(isinstance(n, int) and n > 0 for n in input_size)
    if not whole or len(input_size) != 3:
        raise ValueError(f"`input_size` must be (channels, height, width), e.g. (3, 32, 32), got {input_size!r}.")
    channels, height, width = input_size
    return channels, height, width


def last_of_each(strides: Sequence[Hashable]) -> tuple[int, ...]:
    """Return the index of the last map of each stride (or size); where all are alike (plain ViT), four evenly spaced.

    >>> last_of_each([2, 4, 4, 8]), last_of_each([16] * 12)
    ((0, 2, 3), (2, 5, 8, 11))
    """
    if len(set(strides)) == 1 and len(strides) > 1:
        num_maps = min(NUM_MAPS, len(strides))
        return tuple((i + 1) * len(strides) // num_maps - 1 for i in range(num_maps))
    return tuple(i for i, stride in enumerate(strides) if stride not in strides[i + 1 :])


def choose_indices(student: StudentInfo, out_indices: int | Sequence[int] | None, least: int = 1) -> tuple[int, ...]:
    """Return the indices of the maps to take, highest resolution first.

    Args:
        student: with every map that the model hands out.
        out_indices: the user's choice; None is the last map of each size, of the four smallest where there are more: a
            ResNet's stages without its stem, as in the paper.
        least: number of maps that are needed.

    Raises:
        ValueError: there are fewer, and see `check_out_indices`.
    """
    sizes, name = student.map_sizes, type(student.module).__name__
    infos = [{"num_chs": c, "size": f"{h}x{w}"} for c, (h, w) in zip(student.in_channels, sizes, strict=True)]
    if out_indices is None:
        chosen = last_of_each(sizes)[-NUM_MAPS:]
    else:
        chosen = check_out_indices(out_indices, infos, name)
    if len(chosen) < least:
        given = f"out_indices={out_indices!r} names" if out_indices is not None else "there is"
        raise ValueError(
            f"The method needs at least {least} feature maps, and {given} {len(chosen)}. {name!r} has "
            f"{_listed(infos)}: choose {least} or more of them with `out_indices`."
        )
    return tuple(sorted(chosen, key=lambda i: -sizes[i][0] * sizes[i][1]))


def check_out_indices(
    out_indices: int | Sequence[int], feature_info: Sequence[dict[str, Any]], model_name: str
) -> tuple[int, ...]:
    """Return the indices counted from the first map on; negative ones count from the last.

    Raises:
        ValueError: an index does not exist, or they are not in the order in which the network makes the maps.
    """
    num_maps = len(feature_info)
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not given or any(not isinstance(i, int) or not -num_maps <= i < num_maps for i in given):
        raise ValueError(
            f"out_indices={out_indices!r} does not fit {model_name!r}, which has {_listed(feature_info)}. "
            f"Choose from 0..{num_maps - 1}, or count from the last with -1..-{num_maps}."
        )
    indices = tuple(i % num_maps for i in given)
    if any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
        raise ValueError(
            f"out_indices={out_indices!r} of {model_name!r} must name each map once, in ascending order (the order in "
            f"which the network makes them), e.g. {tuple(sorted(set(indices)))}."
        )
    return indices


def _listed(feature_info: Sequence[dict[str, Any]]) -> str:
    places = [f"of {info['size']}" if "size" in info else f"at stride {info['reduction']}" for info in feature_info]
    maps = ", ".join(f"{i}: {info['num_chs']} channels {places[i]}" for i, info in enumerate(feature_info))
    return f"{len(feature_info)} feature maps ({maps})"
