"""Checks of what a user hands in. Every message says what was expected, what came, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor


def can_read(tensor: Tensor) -> bool:
    """Tell whether a check may look at values: on a CPU, where nothing is waited for, and not while compiling."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_positive_int(name: str, value: object, least: int = 1) -> int:
    """Return ``value`` when it is an int of at least ``least``, else raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int >= {least}, got {value!r} ({type(value).__name__}).")
    if value < least:
        raise ValueError(f"`{name}` must be >= {least}, got {value}.")
    return value


def check_bool(name: str, value: object) -> bool:
    """Return ``value`` when it is True or False, else raise TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, got {value!r} ({type(value).__name__}).")
    return value


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return ``value`` when it is one of ``allowed``, else raise ValueError."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value


def check_number(name: str, value: object) -> None:
    """Raise TypeError for what is no number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {value!r} ({type(value).__name__}).")


def check_share(name: str, value: float, of: str) -> float:
    """Return ``value`` as a float when it is in 0..1, else raise TypeError or ValueError."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` is the share of {of} and must be in 0..1, got {value}.")
    return float(value)


def check_not_negative(name: str, value: float) -> float:
    """Return ``value`` as a float when it is >= 0 and finite, else raise TypeError or ValueError."""
    check_number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` weighs a loss and must be >= 0, got {value}. Use 0 to switch the term off.")
    return float(value)


def check_temperature(value: float) -> float:
    """Return ``value`` as a float when it is > 0 and finite, else raise TypeError or ValueError."""
    check_number("temperature", value)
    if not 0 < value < float("inf"):
        raise ValueError(
            f"`temperature` divides the logits and must be > 0, got {value}. The paper uses 4 (1 to segment)."
        )
    return float(value)


def join_losses(own: dict[str, Tensor], added: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Return a head's own losses and the distillation terms as one dict; raise ValueError where both have a name."""
    both = sorted(own.keys() & added.keys())
    if both:
        raise ValueError(
            f"{owner}: the head's own losses and the distillation both have {', '.join(map(repr, both))}, of which one "
            "would be lost: give the head's loss another name (`loss_name` of the loss in mmseg)."
        )
    return own | added


def check_in_channels(in_channels: Sequence[int], least_levels: int = 2) -> list[int]:
    """Return the channels of at least ``least_levels`` levels as a list, else raise TypeError or ValueError."""
    if isinstance(in_channels, int | str) or not isinstance(in_channels, Sequence):
        raise TypeError(
            f"`in_channels` must list the channels of each level, e.g. [64, 128, 256, 512], got {in_channels!r}."
        )
    if len(in_channels) < least_levels:
        raise ValueError(
            f"`in_channels` must name at least {least_levels} levels, highest resolution first, got "
            f"{list(in_channels)}. The self-teacher fuses maps of several depths: hand out more of them "
            "(`out_indices` of the backbone)."
        )
    return [check_positive_int(f"in_channels[{i}]", c) for i, c in enumerate(in_channels)]


def check_level(name: str, value: int | None, num_levels: int) -> int:
    """Return the level's index; None is the last one and negative ones count from it. ValueError if there is none."""
    if value is None:
        return num_levels - 1
    if not -num_levels <= value < num_levels:
        raise ValueError(
            f"`{name}` must be a level in 0..{num_levels - 1} (there are {num_levels} levels), got {value}."
        )
    return value % num_levels


def check_feats(feats: Sequence[Tensor], in_channels: Sequence[int], owner: str) -> None:
    """Check a list of feature maps [B, C_i, H_i, W_i], highest resolution first, against the channels of ``owner``.

    Raises:
        TypeError: if it is not a list or tuple of tensors.
        ValueError: if their number, rank, channels, batch or order disagree.
    """
    if not isinstance(feats, list | tuple) or not all(isinstance(feat, Tensor) for feat in feats):
        raise TypeError(f"{owner} takes a list of feature maps [B, C, H, W], got {type(feats).__name__}.")
    if len(feats) != len(in_channels):
        raise ValueError(
            f"{owner} was built for {len(in_channels)} feature maps (in_channels={list(in_channels)}), got "
            f"{len(feats)}. Make `in_channels` and the backbone's `out_indices` agree."
        )
    for level, (feat, channels) in enumerate(zip(feats, in_channels, strict=True)):
        if feat.ndim != 4:
            raise ValueError(
                f"{owner}: feature map {level} must be [B, C, H, W], got shape {list(feat.shape)}. "
                "Token sequences [B, N, C] must be reshaped to maps first."
            )
        if feat.shape[1] != channels:
            raise ValueError(
                f"{owner}: feature map {level} must have {channels} channels, got {feat.shape[1]} "
                f"(shape {list(feat.shape)}). Channels stand at dimension 1 (NCHW); make `in_channels` the backbone's."
            )
    if any(feat.shape[0] != feats[0].shape[0] for feat in feats):
        batches = [feat.shape[0] for feat in feats]
        raise ValueError(f"{owner} takes the feature maps of one batch, got {batches} images at the levels.")
    areas = [feat.shape[2] * feat.shape[3] for feat in feats]
    if any(before < after for before, after in zip(areas, areas[1:], strict=False)):  # equal sizes may follow
        order = sorted(range(len(areas)), key=lambda i: -areas[i])
        came = ", ".join(f"{feat.shape[2]}x{feat.shape[3]}" for feat in feats)
        raise ValueError(
            f"{owner} takes feature maps highest resolution first, got {came}. Hand them over in the order {order} "
            f"(in a segmentor's self-teacher: `feat_indices={order}`, with `in_channels` in that order)."
        )


def check_batch_statistics(feats: Sequence[Tensor], training: bool, owner: str) -> None:
    """Raise ValueError for one value a channel in train mode, where batch normalisation has no variance."""
    for level, feat in enumerate(feats if training else ()):
        if feat.shape[0] * feat.shape[2] * feat.shape[3] == 1:
            raise ValueError(
                f"{owner}: feature map {level} has a single value per channel (shape {list(feat.shape)}), which batch "
                "normalisation cannot train on. Use a batch of at least 2, larger images, or leave that level out."
            )
