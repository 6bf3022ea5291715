"""Batch samplers for methods that ask for an order of their batches (`DataNeeds.order`).

Both take the order of a `SeededSampler`, its share of the images in each process, its seed and its epoch. So they are
the same after a resume. ``batch_size`` counts the images that are new in a step: a batch holds twice as many, and an
epoch has as many steps as that of another method, or one less where each batch shares half with the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.data.batch_orders import class_partners, overlapping_batches
from frskd_plugin.mmengine.seeded_sampler import DrawnIndex, SeededSampler


class ClassPairBatchSampler:
    """Batches whose second half holds, in the same order, partners of the classes of the first half's images.

    Every image is once an epoch in a first half. Its partner is another image of its class where there is one, drawn
    anew each epoch, and augmented otherwise than where it is in a first half itself.

    Args:
        sampler: a `SeededSampler`; its data set must have ``targets``, the label of each image.
        batch_size: images of the first half.

    Raises:
        TypeError: a sampler of another type, or ``batch_size`` is no integer.
        ValueError: a data set without labels, or ``batch_size`` is not above 0.
    """

    def __init__(self, sampler: SeededSampler, batch_size: int) -> None:
        self.sampler, self.batch_size = _checked(type(self).__name__, sampler, batch_size)
        self.targets = labels_of(sampler.dataset)

    def __iter__(self) -> Iterator[list[DrawnIndex]]:
        partners = class_partners(self.targets, self.sampler.seed, self.sampler.epoch).tolist()
        order = list(self.sampler)
        for start in range(0, len(order), self.batch_size):
            images = order[start : start + self.batch_size]
            yield [*images, *(DrawnIndex(partners[i], i.epoch, i.seed, draw=1) for i in images)]

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)


class OverlapBatchSampler:
    """Batches whose first half is the second half of the batch before, augmented anew.

    Every image is new once an epoch; see `overlapping_batches` for the two ends of an epoch.

    Args:
        sampler: a `SeededSampler`.
        batch_size: images of the second half.

    Raises:
        TypeError: a sampler of another type, or ``batch_size`` is no integer.
        ValueError: ``batch_size`` is not above 0, or there are too few images for two halves.
    """

    def __init__(self, sampler: SeededSampler, batch_size: int) -> None:
        self.sampler, self.batch_size = _checked(type(self).__name__, sampler, batch_size)
        overlapping_batches(range(len(sampler)), batch_size)  # is there more than one half?

    def __iter__(self) -> Iterator[list[DrawnIndex]]:
        for before, new in overlapping_batches(list(self.sampler), self.batch_size):
            yield [*(index.redrawn(1) for index in before), *new]

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size) - 1


def labels_of(dataset: Any) -> Tensor:
    """The label of each image, int64 [N] on the CPU, of a data set or of the one that it wraps.

    Raises:
        ValueError: it has none, or not one for each image.
    """
    inner = dataset
    while not hasattr(inner, "targets") and hasattr(inner, "dataset"):
        inner = inner.dataset
    if not hasattr(inner, "targets"):
        raise ValueError(
            f"Pairs of one class need the label of each image: {type(inner).__name__} must have them as `targets`, as "
            "data sets of torchvision do."
        )
    labels = torch.as_tensor(inner.targets).cpu()
    if len(labels) != len(dataset):
        raise ValueError(f"The data set has {len(dataset)} images and {len(labels)} labels (`targets`).")
    return labels


def _checked(name: str, sampler: Any, batch_size: int) -> tuple[SeededSampler, int]:
    if not isinstance(sampler, SeededSampler):
        raise TypeError(
            f"{name} needs train_dataloader.sampler of type SeededSampler, got {type(sampler).__name__}; set "
            "sampler=dict(type='SeededSampler', shuffle=True) and train by epochs."
        )
    return sampler, check_positive_int("batch_size", batch_size)
