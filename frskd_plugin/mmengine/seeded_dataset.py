"""A dataset wrapper that makes each sample a function of (seed, epoch, index) alone."""

from __future__ import annotations

from typing import Any

from mmengine.registry import DATASETS

from frskd_plugin.mmengine.random_state import seeded
from frskd_plugin.mmengine.seeded_sampler import DrawnIndex


class SeededDataset:
    """Loads sample `index` of `dataset` with random states that follow from (seed, epoch, index) and `DrawnIndex.draw`.

    Augmentation is then the same with any number of workers, and the same in a resumed run as in one that was never
    interrupted. It needs `SeededSampler` or `SeededInfiniteSampler`, which send seed and epoch along with the index.

    A plain `int` is loaded with the random state as it is, as `dataset[index]` does: for looking at a sample by hand,
    and for validation, whose pipelines draw nothing. In training, a sampler of another type would silently lose what
    this class is for; `tools/train.py` and `StepSeedHook` refuse it.

    Args:
        dataset: a dataset, or the config of one.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    def full_init(self) -> None:
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()

    def get_data_info(self, index: int) -> dict[str, Any]:
        return self.dataset.get_data_info(index)

    def get_cat_ids(self, index: int) -> list[int]:
        return self.dataset.get_cat_ids(index)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, DrawnIndex):
            return self.dataset[index]
        with seeded(index.seed, index.epoch, int(index), *([index.draw] if index.draw else [])):
            return self.dataset[int(index)]
