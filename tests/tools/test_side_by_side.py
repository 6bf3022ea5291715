"""Trainings in one process, in turn: each has random numbers, current objects and output of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope

from frskd_plugin.commands import Terminated
from frskd_plugin.commands import reproduce as command
from frskd_plugin.commands import run as run_command
from frskd_plugin.commands.reproduce_plan import TABLES, Scale, plan_table
from frskd_plugin.commands.reproduce_runs import Store, read_history, training_arguments, training_process
from frskd_plugin.commands.side_by_side import PAUSED, Turn, run_in_turn
from tests.helpers.real_runs import final_weights
from tests.helpers.tiny_classification import write_cifar

TINY = ["model.student.depth=10", "model.student.k=1", "train_dataloader.batch_size=10"]
TINY += [f"{split}_dataloader.dataset.expected_images=None" for split in ("train", "val", "test")]


def draws(seed: int, pause: Callable[[], None], stop_at: int = 4) -> list[float]:
    """Seed all generators as a run does, and draw from them, pausing in between."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    hub = MessageHub.get_instance(f"run {seed}")
    DefaultScope.get_instance(f"run {seed}", scope_name=f"scope{seed}")
    found = []
    for step in range(4):
        if step == stop_at:
            raise FloatingPointError("loss is nan")
        found += [random.random(), np.random.random(), torch.rand(1).item()]
        found += [torch.rand(1, device="cuda").item()] if torch.cuda.is_available() else []
        pause()
        assert MessageHub.get_current_instance() is hub and torch.is_grad_enabled()
        assert DefaultScope.get_current_instance().scope_name == f"scope{seed}"
        print("step", step, "of", seed)
    return found


def test_each_has_its_own_state_of_the_process(tmp_path: Path) -> None:
    found: dict[int, list[float]] = {}
    alone = {seed: draws(seed, lambda: None) for seed in (0, 1)}
    before, hub = torch.get_rng_state(), MessageHub.get_current_instance()

    def work(seed: int, stop_at: int) -> Callable[[Callable[[], None]], None]:
        return lambda pause: found.update({seed: draws(seed, pause, stop_at)})

    files = [open(tmp_path / str(seed), "w", buffering=1) for seed in range(3)]
    turns = [Turn(work(seed, 2 if seed == 2 else 9), file) for seed, file in enumerate(files)]
    run_in_turn(turns)
    assert found == alone  # the third failed, the others went on
    assert [type(turn.error) for turn in turns] == [type(None), type(None), FloatingPointError]
    assert (tmp_path / "0").read_text().splitlines() == [f"step {step} of 0" for step in range(4)]
    assert (tmp_path / "2").read_text().splitlines()[-1] == "stopped: loss is nan"
    assert torch.equal(before, torch.get_rng_state()) and MessageHub.get_current_instance() is hub


def test_a_signal_stops_all_of_them(tmp_path: Path) -> None:
    ended = []

    def work(pause: Callable[[], None]) -> None:
        try:
            while True:
                pause()
        finally:
            ended.append(True)

    turns = [Turn(work, open(tmp_path / name, "w")) for name in "ab"]
    with pytest.raises(Terminated):
        run_in_turn([*turns, Mock(ended=False, advance=Mock(side_effect=[None, Terminated()]))])
    assert ended == [True, True] and all(isinstance(turn.error, Terminated) for turn in turns)


def test_runs_side_by_side_are_the_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and scores are those of the runs alone, also when the clock stops them and another call goes on."""
    monkeypatch.setattr("frskd_plugin.mmengine.attention.AttentionHook._draw", lambda *_: None)  # it is slow
    data = tmp_path / "data"
    write_cifar(data / "cifar100", train=20, test=10)
    table = TABLES["table1"].chosen(["cifar100"], ["wrn_16_2"], ["frskd", "baseline"])
    runs = plan_table(table, Scale(2, None, tuple(TINY)), (0,))
    alone, store = Store(tmp_path / "alone", tmp_path / "out"), Store(tmp_path / "work", tmp_path / "out")
    assert [run_command("train", training_arguments(run, alone, data)) for run in runs] == [0, 0]
    for run in runs:
        store.folder(run).mkdir(parents=True)
    *_, mode, work = training_process(runs, store, data, deadline=0)
    assert command.main([mode, work]) == 0
    for run in runs:
        assert store.log(run).read_text().splitlines()[-1] == PAUSED
        assert not (store.folder(run) / "epoch_2.pth").exists() and not store.is_done(run)
    *_, mode, work = training_process(runs, store, data, deadline=None)
    assert command.main([mode, work]) == 0
    for run in runs:
        weights, expected = final_weights(store.folder(run), 2), final_weights(alone.folder(run), 2)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)
        assert store.is_done(run) and store.read(run)["history"] == read_history(alone.folder(run))
        assert store.read(run)["seconds"] > 0
