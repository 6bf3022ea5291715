"""Random state of samples and steps: a function of seed, epoch and index, whatever the workers did."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader

from frskd_plugin.mmengine.seeding import (
    DrawnIndex,
    SeededDataset,
    SeededInfiniteSampler,
    SeededSampler,
    StepSeedHook,
    derive_seeds,
    seeded,
)
from tests.helpers.real_runs import assert_equal, train
from tests.helpers.tiny_mmseg import tiny_config


class DrawingDataset:
    """Each sample is (index, one number drawn from each of the three generators)."""

    metainfo = {"classes": ("a", "b")}

    def __init__(self, size: int = 6) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_data_info(self, index: int) -> dict[str, int]:
        return {"sample_idx": index}

    def __getitem__(self, index: int) -> list[float]:
        assert type(index) is int
        return [index, random.random(), float(np.random.rand()), torch.rand(1, dtype=torch.float64).item()]


def draws(epochs: list[int], workers: int, seed: int = 5, persistent: bool = False) -> list[list[list[float]]]:
    """All samples of each epoch in turn, as a training loop sees them."""
    dataset = SeededDataset(DrawingDataset())
    sampler = SeededSampler(dataset, seed=seed)
    settings = dict(num_workers=workers, persistent_workers=persistent, collate_fn=lambda batch: batch)
    loader, seen = DataLoader(dataset, batch_size=2, sampler=sampler, **settings), []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        seen.append([sample for batch in loader for sample in batch])
    return seen


def test_samples_depend_on_seed_epoch_and_index_and_neither_on_workers_nor_on_a_resume() -> None:
    alone = draws([0, 1, 2], workers=0)
    assert draws([0, 1, 2], workers=2, persistent=True) == alone
    assert draws([2], workers=2) == alone[2:]
    by_index = {sample[0]: sample[1:] for sample in alone[0]}
    for sample in [*alone[1], *draws([0], workers=0, seed=6)[0]]:
        assert all(a != b for a, b in zip(by_index[sample[0]], sample[1:], strict=True))
    assert len({tuple(drawn) for drawn in by_index.values()}) == len(by_index) == 6


def test_outer_random_states_are_restored() -> None:
    dataset = SeededDataset(DrawingDataset())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [random.random(), np.random.rand(), torch.rand(1).item()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    dataset[DrawnIndex(0, epoch=0, seed=0)]
    with pytest.raises(KeyError), seeded(1, 2, 3):
        raise KeyError
    assert [random.random(), np.random.rand(), torch.rand(1).item()] == expected
    random.seed(1)
    assert dataset[3][:2] == [3, expected[0]]  # a plain index draws from the outer state


def test_wrapper_and_index_pass_through_to_another_process() -> None:
    dataset, index = pickle.loads(pickle.dumps((SeededDataset(DrawingDataset()), DrawnIndex(7, epoch=2, seed=42))))
    assert len(dataset) == 6 and dataset.metainfo == DrawingDataset.metainfo
    assert dataset.get_data_info(2) == {"sample_idx": 2} and not hasattr(dataset, "__getitems__")
    assert (index, index.epoch, index.seed) == (7, 2, 42)


def test_order_is_that_of_mmengine() -> None:
    ours, theirs = SeededSampler(range(10), seed=3), DefaultSampler(range(10), seed=3)
    for epoch in (0, 4):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert list(ours) == list(theirs)
        assert {index.epoch for index in ours} == {epoch}
    infinite, reference = iter(SeededInfiniteSampler(range(4), seed=3)), iter(InfiniteSampler(range(4), seed=3))
    drawn = [next(infinite) for _ in range(10)]
    assert drawn == [next(reference) for _ in range(10)]
    assert [index.epoch for index in drawn] == [0] * 4 + [1] * 4 + [2] * 2


@pytest.mark.parametrize("sampler_class", [SeededSampler, SeededInfiniteSampler])
def test_ranks_share_the_draws(sampler_class: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def indices(rank: int, world_size: int, count: int) -> list[tuple[int, int]]:
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda: (rank, world_size))
        return [(int(i), i.epoch) for _, i in zip(range(count), sampler_class(range(6), seed=1), strict=False)]

    alone = indices(0, 1, 6)
    assert indices(0, 2, 3) == alone[::2] and indices(1, 2, 3) == alone[1::2]


def test_skip_of_the_infinite_sampler_keeps_the_epoch() -> None:
    sampler = SeededInfiniteSampler(range(4), seed=3)
    if not hasattr(sampler, "skip"):
        pytest.skip("this mmengine's InfiniteSampler cannot skip; its loop advances the loader instead")
    expected = [(int(i), i.epoch) for _, i in zip(range(9), SeededInfiniteSampler(range(4), seed=3), strict=False)]
    sampler.skip(5)
    assert [(int(i), i.epoch) for _, i in zip(range(4), sampler, strict=False)] == expected[5:]


def test_step_seed_depends_on_seed_iteration_and_rank() -> None:
    def draw(hook: StepSeedHook, **runner: int) -> tuple[float, float, float]:
        hook.before_train_iter(SimpleNamespace(**{"seed": 0, "iter": 0, "rank": 0, **runner}), batch_idx=0)
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    base = draw(StepSeedHook())
    assert draw(StepSeedHook()) == draw(StepSeedHook(seed=0), seed=9) == base
    for other in (dict(seed=1), dict(iter=1), dict(rank=1)):
        assert all(a != b for a, b in zip(base, draw(StepSeedHook(), **other), strict=True))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="empty dataset; check data_root"):
        SeededInfiniteSampler([], seed=1)
    with pytest.raises(ValueError, match="must not be negative"):
        derive_seeds(-1, 2)
    with pytest.raises(ValueError, match="StepSeedHook: seed must be None or an int >= 0, got -1"):
        StepSeedHook(seed=-1)
    runner = SimpleNamespace(train_dataloader=DataLoader(SeededDataset(DrawingDataset())))
    with pytest.raises(ValueError, match="needs train_dataloader.sampler of type SeededSampler .* got SequentialSampl"):
        StepSeedHook().before_train(runner)


def test_iteration_based_resume_is_exact(data_root: Path, tmp_path: Path) -> None:
    config = tiny_config(data_root, workers=0)
    config.train_dataloader.sampler.type = "SeededInfiniteSampler"
    config.train_cfg = dict(type="IterBasedTrainLoop", max_iters=8, val_interval=8)
    config.param_scheduler = [dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=8, by_epoch=False)]
    config.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=3)
    config.default_hooks.logger.log_metric_by_epoch = False
    config.log_processor = dict(by_epoch=False)
    whole = train(config, tmp_path / "whole").model.state_dict()
    runner = train(config, tmp_path / "resumed", resume=True, load_from=str(tmp_path / "whole" / "iter_3.pth"))
    assert runner.iter == 8
    assert_equal(whole, runner.model.state_dict())
