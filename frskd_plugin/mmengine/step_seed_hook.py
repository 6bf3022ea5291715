"""Random state of each training step from (seed, iteration, rank)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook

from frskd_plugin.mmengine.method_dataset import MethodDataset
from frskd_plugin.mmengine.random_state import derive_seeds
from frskd_plugin.mmengine.seeded_dataset import SeededDataset
from frskd_plugin.mmengine.seeded_sampler import SeededInfiniteSampler, SeededSampler


class StepSeedHook(Hook):
    """Sets the random states before each training step, so that dropout and drop-path are the same after a resume.

    A checkpoint holds no random state. Deriving it from the number of the iteration needs none, for epoch-based and
    for iteration-based training alike; ranks draw differently.

    Args:
        seed: the seed of the run; None takes the runner's (`randomness = dict(seed=...)`, or the one it drew and wrote
            into its checkpoints).

    Raises:
        ValueError: a negative seed.
    """

    # Before every hook that might draw.
    priority = "VERY_HIGH"

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise ValueError(f"StepSeedHook: seed must be None or an int >= 0, got {seed}")
        self.seed = seed

    def before_train(self, runner: Any) -> None:
        """Refuse a `SeededDataset` whose sampler sends no seeds: the run would not be reproducible.

        Raises:
            ValueError: the training sampler is neither `SeededSampler` nor `SeededInfiniteSampler`.
        """
        loader = runner.train_dataloader
        dataset = loader.dataset.dataset if isinstance(loader.dataset, MethodDataset) else loader.dataset
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        if isinstance(dataset, SeededDataset) and not isinstance(sampler, (SeededSampler, SeededInfiniteSampler)):
            raise ValueError(
                f"SeededDataset needs train_dataloader.sampler of type SeededSampler (epoch-based training) or "
                f"SeededInfiniteSampler (iteration-based), got {type(sampler).__name__}; "
                f"set sampler=dict(type='SeededSampler', shuffle=True)"
            )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        seed = runner.seed if self.seed is None else self.seed
        python_seed, numpy_seed, torch_seed = derive_seeds(seed, runner.iter, runner.rank)
        random.seed(python_seed)
        np.random.seed(numpy_seed)
        torch.manual_seed(torch_seed)  # all devices
