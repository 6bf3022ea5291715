"""Orders of a training set that some methods ask for: partners of one class, and batches that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Index = TypeVar("Index", bound=int)

# With the seed and the epoch, the key of the partners' random numbers: a stream apart from that of the crops.
_PARTNERS = 0x70616972


def class_partners(targets: Tensor, seed: int, epoch: int) -> Tensor:
    """A random image of the same class for each image: any other one, or itself where its class has one image.

    The partners follow from the seed and the epoch alone, so that every process draws the same.

    Args:
        targets: the label of each image, integers [N], on the CPU.
        seed: not negative.
        epoch: not negative.

    Returns:
        Indices int64 [N].

    Example:
        >>> class_partners(torch.tensor([5, 8, 5, 7, 8]), seed=0, epoch=0).tolist()
        [2, 4, 0, 3, 1]
    """
    by_class = targets.argsort(stable=True)  # images of one class side by side
    _, counts = targets[by_class].unique_consecutive(return_counts=True)
    size, start = counts.repeat_interleave(counts), (counts.cumsum(0) - counts).repeat_interleave(counts)
    rng = np.random.default_rng([seed, epoch, _PARTNERS])
    step = torch.from_numpy(rng.integers(1, size.clamp(min=2).numpy()))  # to another place in the class
    place = start + (torch.arange(len(targets)) - start + step) % size
    partners = torch.empty_like(by_class)
    partners[by_class] = by_class[place]
    return partners


def overlapping_batches(order: Sequence[Index], size: int) -> Iterator[tuple[list[Index], list[Index]]]:
    """Both halves of each batch: ``size`` images that the batch before had too, and ``size`` that are new.

    Of the first batch both halves are new. Where ``size`` does not divide the number of images, the last half is filled
    up with images from the beginning of the order.

    Raises:
        ValueError: There are no two halves.

    Example:
        >>> list(overlapping_batches([4, 0, 3, 1, 2], 2))
        [([4, 0], [3, 1]), ([3, 1], [2, 4])]
    """
    if len(order) <= size:
        raise ValueError(
            f"Overlapping batches take two halves of {size} images at least, got {len(order)} images: lower batch_size."
        )
    images = [*order, *order[: -len(order) % size]]
    halves = [images[start : start + size] for start in range(0, len(images), size)]
    return zip(halves, halves[1:], strict=False)
