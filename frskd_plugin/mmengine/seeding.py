"""Random states that follow from numbers (seed, epoch, index, iteration), not from what was drawn before.

mmengine's samplers give the same order of indices for the same seed, but not the same augmentation, which depends on
what a worker process happened to draw before. The samplers here send the pass along with each index, and
`SeededDataset` derives the random state of the sample from it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import DATASETS


def derive_seeds(*keys: int) -> tuple[int, int, int]:
    """Return three independent seeds of 32 bits (python, numpy, torch) that depend on every key and on their order."""
    if any(key < 0 for key in keys):
        raise ValueError(f"random seeds must not be negative, got {keys}; give a seed >= 0")
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(keys).generate_state(3).tolist()
    return python_seed, numpy_seed, torch_seed


@contextmanager
def seeded(*keys: int) -> Iterator[None]:
    """Run a block with the random states of python, numpy and torch that belong to `keys`; restore them after it.

    Only torch's CPU generator is touched: samples are made on the CPU, and a forked worker must not call CUDA.
    """
    outer_python, outer_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            _seed(torch.default_generator.manual_seed, *keys)
            yield
        finally:
            random.setstate(outer_python)
            np.random.set_state(outer_numpy)


def _seed(seed_torch: Callable[[int], Any], *keys: int) -> None:
    python_seed, numpy_seed, torch_seed = derive_seeds(*keys)
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    seed_torch(torch_seed)


class DrawnIndex(int):
    """Index of a dataset that knows the pass (epoch) and the seed it was drawn with; else an `int`.

    ``draw`` tells the augmentations of one image in one pass apart, where it is asked for more than once.

    >>> index = DrawnIndex(7, epoch=2, seed=42)
    >>> index + 1, index.epoch, index.seed, index.redrawn(1).draw
    (8, 2, 42, 1)
    """

    epoch: int
    seed: int
    draw: int

    def __new__(cls, index: int, epoch: int, seed: int, draw: int = 0) -> DrawnIndex:
        drawn = super().__new__(cls, index)
        drawn.epoch, drawn.seed, drawn.draw = epoch, seed, draw
        return drawn

    def __reduce__(self) -> tuple[type[DrawnIndex], tuple[int, int, int, int]]:
        return DrawnIndex, (int(self), self.epoch, self.seed, self.draw)

    def redrawn(self, draw: int) -> DrawnIndex:
        return DrawnIndex(int(self), self.epoch, self.seed, draw)


class SeededSampler(DefaultSampler):
    """mmengine's `DefaultSampler` with `DrawnIndex` in place of `int`, for epoch-based training.

    The epoch is set by mmengine's `DistSamplerSeedHook`, one of its default hooks.
    """

    def __iter__(self) -> Iterator[DrawnIndex]:
        for index in super().__iter__():
            yield DrawnIndex(index, epoch=self.epoch, seed=self.seed)


class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's `InfiniteSampler` with `DrawnIndex` in place of `int`, for iteration-based training.

    The epoch of an index is the number of passes that the stream of all ranks had completed before it.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        if len(dataset) == 0:
            raise ValueError("SeededInfiniteSampler got an empty dataset; check data_root and the list of images")
        super().__init__(dataset, shuffle=shuffle, seed=seed)

    def _infinite_indices(self) -> Iterator[DrawnIndex]:
        for position, index in enumerate(super()._infinite_indices()):
            yield DrawnIndex(index, epoch=position // self.size, seed=self.seed)


class DatasetWrapper:
    """Data set around another (or the config of one), to which it passes on every attribute that it lacks."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not there yet while it is unpickled; and whole batches
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededDataset(DatasetWrapper):
    """Load sample `index` of `dataset` with random states that follow from (seed, epoch, index) and `DrawnIndex.draw`.

    Augmentation is then the same with any number of workers, and after a resume. It needs `SeededSampler` or
    `SeededInfiniteSampler`; `StepSeedHook` refuses another one in training. A plain `int` is loaded with the random
    state as it is: for looking at a sample by hand, and for validation, whose pipelines draw nothing.
    """

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, DrawnIndex):
            return self.dataset[index]
        with seeded(index.seed, index.epoch, int(index), *([index.draw] if index.draw else [])):
            return self.dataset[int(index)]


class StepSeedHook(Hook):
    """Set the random states before each training step, so that dropout and drop-path are the same after a resume.

    A checkpoint holds no random state: it follows from ``seed`` (None takes the runner's), the number of the iteration
    and the rank.
    """

    priority = "VERY_HIGH"  # before every hook that might draw

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"StepSeedHook: seed must be None or an int >= 0, got {seed}")
        self.seed = seed

    def before_train(self, runner: Any) -> None:
        """Refuse a `SeededDataset` whose sampler sends no seeds (ValueError): the run would not be reproducible."""
        loader = runner.train_dataloader
        dataset = loader.dataset
        while not isinstance(dataset, SeededDataset) and hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        if isinstance(dataset, SeededDataset) and not isinstance(sampler, (SeededSampler, SeededInfiniteSampler)):
            raise ValueError(
                f"SeededDataset needs train_dataloader.sampler of type SeededSampler (epoch-based training) or "
                f"SeededInfiniteSampler (iteration-based), got {type(sampler).__name__}; "
                f"set sampler=dict(type='SeededSampler', shuffle=True)"
            )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        seed = runner.seed if self.seed is None else self.seed
        _seed(torch.manual_seed, seed, runner.iter, runner.rank)  # of all devices
