"""Images as one tensor: torchvision's crops and flips, draws from (seed, epoch, index) alone, ordinary loaders."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch.utils.data import DataLoader, RandomSampler

from frskd_plugin.data import tensor_images
from frskd_plugin.data.tensor_images import (
    TensorCifar100,
    TensorImages,
    crop_windows,
    draw_crops,
    mirrored_canvas,
    take_batch,
)
from frskd_plugin.mmengine.seeding import DrawnIndex

COUNT, HEIGHT, WIDTH = 60, 6, 9


class Shuffled:
    """A sampler of `DrawnIndex`: the order of one pass, from ``start`` on, as after a resume."""

    def __init__(self, epoch, seed=7, start=0, step=1):
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        self.indices = [DrawnIndex(i, epoch, seed) for i in order[start::step]]

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (COUNT, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)


def samples(dataset, sampler, batch_size=7, workers=0):
    """Target (here: the image's number) -> input, of one pass."""
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=take_batch)
    return {
        int(target): image for batch in loader for image, target in zip(batch["inputs"], batch["targets"], strict=True)
    }


def assert_same(some, others):
    assert some and some.keys() <= others.keys()
    for target, image in some.items():
        assert torch.equal(image, others[target])


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crops_equal_torchvision(images, padding):
    sides = range(2 * padding + 1)
    crops = torch.tensor([(top, left, flip) for top in sides for left in sides for flip in (0, 1)])
    index = torch.arange(len(crops)) % COUNT
    made = crop_windows(mirrored_canvas(images, padding), index, crops, (HEIGHT, WIDTH))
    assert made.is_contiguous() and made.dtype == torch.uint8
    for i, (top, left, flip), crop in zip(index, crops.tolist(), made, strict=True):
        expected = TF.crop(TF.pad(images[i], [padding] * 4), top, left, HEIGHT, WIDTH)
        assert torch.equal(crop, TF.horizontal_flip(expected) if flip else expected)


def test_draws_are_uniform_and_differ_by_seed_and_epoch():
    table = draw_crops(90_000, 4, seed=0, epoch=1)
    for column in (0, 1):
        counts = table[:, column].bincount(minlength=9)
        assert len(counts) == 9 and (counts - 10_000).abs().max() < 400  # four standard deviations
    assert abs(table[:, 2].float().mean() - 0.5) < 0.01
    assert abs(torch.corrcoef(table.T.double()).fill_diagonal_(0)).max() < 0.02
    tables = [draw_crops(1000, 4, seed, epoch) for seed, epoch in ((0, 1), (1, 0), (1, 1), (0, 2))]
    for i, one in enumerate(tables):
        for other in tables[:i]:
            assert (one == other).float().mean() < 0.4


def test_draws_do_not_depend_on_batches_workers_processes_or_resume(images):
    def dataset():
        return TensorImages(images, torch.arange(COUNT), augment=True)

    whole = samples(dataset(), Shuffled(epoch=2))
    assert whole.keys() == set(range(COUNT))
    assert_same(samples(dataset(), Shuffled(epoch=2, start=1, step=2), batch_size=16), whole)  # one of two processes
    assert_same(samples(dataset(), Shuffled(epoch=2), workers=2), whole)
    assert_same(samples(dataset(), Shuffled(epoch=2, start=35)), whole)  # resumed in the middle of the pass
    used = dataset()
    others = [samples(used, Shuffled(epoch=epoch)) for epoch in (0, 1)]
    assert_same(samples(used, Shuffled(epoch=2)), whole)
    assert all(sum(torch.equal(whole[i], other[i]) for i in whole) < 10 for other in others)


def test_batch_may_lie_in_two_passes(images):
    def batch(indices):
        return TensorImages(images, torch.arange(COUNT), augment=True).__getitems__(indices)["inputs"]

    indices = [DrawnIndex(4, 0, 1), DrawnIndex(9, 0, 1), DrawnIndex(4, 1, 1), DrawnIndex(2, 1, 1)]
    both = batch(indices)
    top, left, flip = draw_crops(COUNT, 4, seed=1, epoch=0)[9].tolist()
    expected = TF.crop(TF.pad(images[9], [4] * 4), top, left, HEIGHT, WIDTH)
    assert torch.equal(both[1], TF.horizontal_flip(expected) if flip else expected)
    assert torch.equal(both, torch.cat([batch(indices[:2]), batch(indices[2:])]))
    assert not torch.equal(both[0], both[2])


def test_a_pass_is_drawn_once_though_many_trainings_take_turns(images):
    dataset = TensorImages(images, torch.arange(COUNT), augment=True)
    tensor_images._crop_table.cache_clear()
    for i in range(3):
        for seed in range(16):
            dataset.plan([DrawnIndex(i, 5, seed), DrawnIndex(i, 5, seed, draw=1)])
    assert tensor_images._crop_table.cache_info().misses == 16 * 2


def test_plain_ints_draw_from_the_global_state(images):
    dataset = TensorImages(images, torch.arange(COUNT), augment=True)
    loader = DataLoader(dataset, 20, sampler=RandomSampler(range(COUNT)), collate_fn=take_batch)
    torch.manual_seed(0)
    first, other = [next(iter(loader)) for _ in range(2)]
    torch.manual_seed(0)
    again = next(iter(loader))
    assert torch.equal(first["inputs"], again["inputs"]) and torch.equal(first["targets"], again["targets"])
    assert not torch.equal(first["inputs"], other["inputs"])


def test_without_augmentation_images_are_as_they_were_and_nothing_is_shared_with_the_caller(images):
    given, targets = images.numpy().copy(), np.arange(COUNT, dtype=np.int32)
    dataset = TensorImages(given, targets, classes=["a", "b"])
    assert len(dataset) == COUNT and dataset.metainfo == {"classes": ("a", "b")}
    batch = dataset.__getitems__([1, 2])
    batch["inputs"].zero_(), batch["targets"].zero_(), given.fill(0), targets.fill(0)
    plain = samples(dataset, Shuffled(epoch=0))
    assert plain.keys() == set(range(COUNT)) and all(torch.equal(image, images[i]) for i, image in plain.items())
    one = dataset[3]
    assert torch.equal(one["inputs"], images[3]) and one["targets"].item() == 3 and one["targets"].dtype == torch.int64


def test_cifar100_augments_its_training_images(images, monkeypatch):
    loaded = namedtuple("ImageArrays", "images targets classes")(images, torch.arange(COUNT), ["x"] * 100)
    asked = []
    monkeypatch.setattr(tensor_images, "load_cifar100", lambda *args: asked.append(args) or loaded)
    for split in ("train", "test"):
        dataset = TensorCifar100("somewhere", split=split, images_per_class=5, expected_images=50, device="cpu")
        assert asked.pop() == ("somewhere", split, 5, 50) and len(dataset.metainfo["classes"]) == 100
        drawn = samples(dataset, Shuffled(epoch=0))
        assert all(torch.equal(drawn[i], images[i]) for i in drawn) is (split == "test")


def test_mistakes_are_told(images):
    targets = torch.arange(COUNT)
    for arguments, error, message in (
        ((images.float(), targets), TypeError, "must be uint8 .*got torch.float32"),
        ((images, targets.float()), TypeError, "targets must be integers, got torch.float32"),
        ((images, targets[1:]), ValueError, r"images must be \[N, C, H, W\].*got \[60, 3, 6, 9\] and \[59\]"),
        ((images[:0], targets[:0]), ValueError, r"with N >= 1, got \[0, 3, 6, 9\]"),
        ((images, targets, True, -1), ValueError, "must not be negative, got -1. Use augment=False"),
    ):
        with pytest.raises(error, match=message):
            TensorImages(*arguments)
    with pytest.raises(ValueError, match="must not be negative, got seed=-1, epoch=0"):
        draw_crops(1, 4, seed=-1, epoch=0)
    on_gpu = TensorImages(images, targets, device="meta")  # stands for a GPU: it is not the CPU
    with pytest.raises(ValueError, match="lie on meta.*set num_workers=0"):
        next(iter(DataLoader(on_gpu, 4, num_workers=1, collate_fn=take_batch)))
