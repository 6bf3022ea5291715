"""Samplers that say with each index in which pass over the data it was drawn.

mmengine's samplers already give the same order of indices for the same seed. What they do not give is the random state
of the augmentation, which depends on what a worker process happened to draw before. These two samplers send the pass
along with each index, and `SeededDataset` derives the random state of the sample from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized

from mmengine.dataset import DefaultSampler, InfiniteSampler


class DrawnIndex(int):
    """An index of a dataset that knows the pass (epoch) and the seed it was drawn with.

    It is an `int` for everything else, and survives the way to a worker process.

    Args:
        index: the index.
        epoch: the pass.
        seed: the seed.
        draw: tells the augmentations of one image in one pass apart, where it is asked for more than once.

    Example:
        >>> index = DrawnIndex(7, epoch=2, seed=42)
        >>> index + 1, index.epoch, index.seed, index.redrawn(1).draw
        (8, 2, 42, 1)
    """

    epoch: int
    seed: int
    draw: int

    def __new__(cls, index: int, epoch: int, seed: int, draw: int = 0) -> DrawnIndex:
        drawn = super().__new__(cls, index)
        drawn.epoch = epoch
        drawn.seed = seed
        drawn.draw = draw
        return drawn

    def __reduce__(self) -> tuple[type[DrawnIndex], tuple[int, int, int, int]]:
        return DrawnIndex, (int(self), self.epoch, self.seed, self.draw)

    def redrawn(self, draw: int) -> DrawnIndex:
        """The same index, to be augmented otherwise."""
        return DrawnIndex(int(self), self.epoch, self.seed, draw)


class SeededSampler(DefaultSampler):
    """mmengine's `DefaultSampler` with `DrawnIndex` in place of `int`, for epoch-based training.

    The epoch is set by mmengine's `DistSamplerSeedHook`, one of its default hooks. The settings are those of
    `DefaultSampler`: `dataset`, `shuffle`, `seed` (the runner's where none is given) and `round_up`.

    Example:
        >>> sampler = SeededSampler(range(3), shuffle=False, seed=1)
        >>> sampler.set_epoch(4)
        >>> [(index, index.epoch) for index in sampler]
        [(0, 4), (1, 4), (2, 4)]
    """

    def __iter__(self) -> Iterator[DrawnIndex]:
        for index in super().__iter__():
            yield DrawnIndex(index, epoch=self.epoch, seed=self.seed)


class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's `InfiniteSampler` with `DrawnIndex` in place of `int`, for iteration-based training.

    The epoch of an index is the number of passes that the stream of all ranks had completed before it.

    Args:
        dataset: anything with a length.
        shuffle: draw a new order for each pass.
        seed: of the order and of the indices, the same on all ranks; None: drawn once and shared by the ranks.

    Raises:
        ValueError: the dataset is empty.

    Example:
        >>> draws = iter(SeededInfiniteSampler(range(2), shuffle=False, seed=1))
        >>> [(int(index), index.epoch) for _, index in zip(range(5), draws)]
        [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        if len(dataset) == 0:
            raise ValueError("SeededInfiniteSampler got an empty dataset; check data_root and the list of images")
        super().__init__(dataset, shuffle=shuffle, seed=seed)

    def _infinite_indices(self) -> Iterator[DrawnIndex]:
        for position, index in enumerate(super()._infinite_indices()):
            yield DrawnIndex(index, epoch=position // self.size, seed=self.seed)
