"""Orders of images that methods ask for, against properties that are counted by hand."""

from __future__ import annotations

import pytest
import torch

from frskd_plugin.mmengine.method_data import class_partners, overlapping_batches

LABELS = torch.tensor([3, 0, 3, 7, 0, 3, 9, 0, 3])  # four of class 3, three of 0, one of 7, one of 9


def test_partners_are_other_images_of_the_class() -> None:
    for epoch in range(20):
        partners = class_partners(LABELS, seed=5, epoch=epoch)
        assert partners.dtype == torch.int64
        assert torch.equal(LABELS[partners], LABELS)
        assert [i for i, partner in enumerate(partners.tolist()) if i == partner] == [3, 6]  # alone in their classes


def test_partners_follow_from_seed_and_epoch() -> None:
    labels = torch.arange(200) % 10
    first = class_partners(labels, seed=1, epoch=2)
    assert torch.equal(first, class_partners(labels, seed=1, epoch=2))
    assert not torch.equal(first, class_partners(labels, seed=1, epoch=3))
    assert not torch.equal(first, class_partners(labels, seed=2, epoch=2))


def test_batches_overlap_and_every_image_is_new_once() -> None:
    for count in range(2, 14):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
        for size in range(1, count):
            batches = list(overlapping_batches(order, size))
            assert all(len(before) == len(new) == size for before, new in batches)
            assert all(new == before for (_, new), (before, _) in zip(batches, batches[1:], strict=False))
            seen = [*batches[0][0], *(image for _, new in batches for image in new)]
            assert seen == order + order[: -count % size]  # what is repeated fills up the last half


@pytest.mark.parametrize("count", [0, 3, 4])
def test_a_single_half_does_not_overlap(count: int) -> None:
    with pytest.raises(ValueError, match=f"two halves of 4 images at least, got {count} images: lower batch_size"):
        overlapping_batches(range(count), 4)
