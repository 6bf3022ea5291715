"""Hooks and guards that stop a run before something is lost or a number is wrong."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from torch import nn

from frskd_plugin.commands.runner import _QuietRunner, locked, open_data, what_is_lost
from frskd_plugin.mmengine.safety_hooks import FiniteLossHook, WeightsFitHook, guard_training
from tests.helpers.processes import fork_server


class Segmentor(nn.Module):
    """A backbone, a head and a self-teacher, each of one layer."""

    def __init__(self, classes: int = 2, self_teacher: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 4)
        self.decode_head = nn.Linear(4, classes)
        if self_teacher:
            self.self_teacher = nn.Linear(4, classes)


@pytest.fixture
def runner() -> SimpleNamespace:
    """As much of a runner as the hooks look at: iteration 6 of the third epoch."""
    logger = logging.getLogger("test_run_safety")
    return SimpleNamespace(
        iter=6,
        epoch=2,
        model=Segmentor(),
        logger=logger,
        _resume=False,
        _load_from="old.pth",
        hooks=[],
        optim_wrapper=SimpleNamespace(get_lr=lambda: {"lr": [0.1]}),
        message_hub=SimpleNamespace(runtime_info={"last_ckpt": "w/epoch_2.pth"}),
    )


def losses(feat: float) -> dict[str, Any]:
    values = {"loss_ce": 0.5, "loss_feat": feat, "loss": 0.5 + feat}
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_the_training(
    runner: SimpleNamespace, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    hook = FiniteLossHook()
    hook.after_train_iter(runner, 0, outputs={**losses(0.25), "train_top1": torch.tensor(float("nan"))})
    message = rf"iteration 7, epoch 3, learning rate 0\.1: loss_ce 0\.5, loss_feat {value}\. .*good .* w/epoch_2\.pth"
    with pytest.raises(FloatingPointError, match=message):
        hook.after_train_iter(runner, 1, outputs=losses(value))
    FiniteLossHook(stop=False).after_train_iter(runner, 0, outputs=losses(value))
    assert "loss is not finite at iteration 7" in caplog.text


def test_the_guards_of_a_training() -> None:
    guarded = SimpleNamespace(hooks=[FiniteLossHook()])
    guarded.register_hook = guarded.hooks.append
    guard_training(guarded, allow_nan=True)
    assert [type(hook) for hook in guarded.hooks] == [FiniteLossHook, WeightsFitHook]
    assert not guarded.hooks[0].stop
    with pytest.raises(ValueError, match="interval must be at least 1, got 0"):
        FiniteLossHook(interval=0)


def test_losses_and_weights_are_looked_at_before_a_checkpoint(runner: SimpleNamespace) -> None:
    hook, weights = FiniteLossHook(), runner.model.state_dict()
    for event, arguments in (("after_train_epoch", ()), ("before_save_checkpoint", ({"state_dict": weights},))):
        hook._steps = [(4, 0.2, losses(0.1)), (5, 0.2, losses(float("nan"))), (6, 0.2, losses(float("nan")))]
        with pytest.raises(FloatingPointError, match="at iteration 6, .*learning rate 0.2"):  # the first of the two
            getattr(hook, event)(runner, *arguments)
    hook.before_save_checkpoint(runner, {"state_dict": weights})
    weights["decode_head.bias"] = torch.tensor([0.0, float("nan")])
    with pytest.raises(FloatingPointError, match="weights are not finite after iteration 6: decode_head.bias"):
        hook.before_save_checkpoint(runner, {"state_dict": weights})


def test_a_run_goes_on_with_all_of_its_weights_only(runner: SimpleNamespace) -> None:
    runner._resume, hook = True, WeightsFitHook()
    hook.after_load_checkpoint(runner, {"state_dict": Segmentor().state_dict()})
    for source, text in (
        (Segmentor(self_teacher=False), "missing self_teacher.weight, self_teacher.bias"),
        (Segmentor(classes=5), r"shape decode_head.weight \[5, 4\] for \[2, 4\], .* and 1 more"),
        (nn.ModuleDict({"old": Segmentor()}), "missing backbone.weight, .* 3 more; unexpected old.backbone.weight"),
    ):
        message = f"old.pth does not fit the model of this config: {text}.*load_from=old.pth"
        with pytest.raises(ValueError, match=message):
            hook.after_load_checkpoint(runner, {"state_dict": source.state_dict()})


@pytest.mark.parametrize(
    ("optimizer", "text"),
    [
        (partial(torch.optim.Adam, lr=0.1), "Adam needs betas, eps, which are not in it"),
        (lambda parameters: torch.optim.SGD([{"params": parameter} for parameter in parameters], 0.1), "6 in 6"),
        (partial(torch.optim.SGD, lr=0.5), None),
    ],
)
def test_a_run_goes_on_with_its_own_optimizer_only(runner: SimpleNamespace, optimizer: Any, text: str | None) -> None:
    runner._resume, saved = True, torch.optim.SGD(runner.model.parameters(), lr=0.1)
    runner.optim_wrapper.optimizer = optimizer(runner.model.parameters())
    checkpoint = {"state_dict": runner.model.state_dict(), "optimizer": saved.state_dict()}
    refused = pytest.raises(
        ValueError, match=f"old.pth does not fit the optimizer of this config: .*{text}.*load_from="
    )
    with nullcontext() if text is None else refused:
        WeightsFitHook().after_load_checkpoint(runner, checkpoint)


def test_averaged_weights_that_do_not_fit_are_told_as_others_are() -> None:
    runner, hook = _QuietRunner.__new__(_QuietRunner), EMAHook()
    runner._resume, runner._load_from, runner._hooks = True, "old.pth", [hook]
    hook.ema_model, hook.src_model = ExponentialMovingAverage(Segmentor()), Segmentor()
    averaged = ExponentialMovingAverage(Segmentor(classes=5)).state_dict()
    checkpoint = {"state_dict": Segmentor(classes=5).state_dict(), "ema_state_dict": averaged}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.runner.runner._load_checkpoint", lambda *args, **kwargs: checkpoint)
        with pytest.raises(ValueError, match="old.pth does not fit the model of this config: Error"):
            runner.load_checkpoint("old.pth")


def test_a_list_of_images_that_is_not_there_is_told_with_its_setting() -> None:
    class Lazy:
        @property
        def val_loop(self) -> None:
            raise AssertionError("Failed to load `ann_file` data/val.txt")

    with pytest.raises(ValueError, match=r"val_dataloader: Failed to load `ann_file` data/val.txt; .*data_root"):
        open_data(Lazy(), "val")  # type: ignore[arg-type]


def test_a_test_needs_all_but_what_only_training_uses(
    runner: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    hook = WeightsFitHook(test=True)
    hook.after_load_checkpoint(runner, {"state_dict": Segmentor(self_teacher=False).state_dict()})
    other_head = {"state_dict": Segmentor(classes=5).state_dict()}
    with pytest.raises(ValueError, match=r"weight \[5, 4\] for \[2, 4\], .*\. Give .* or --partial-load"):
        hook.after_load_checkpoint(runner, other_head)
    WeightsFitHook(test=True, partial=True).after_load_checkpoint(runner, other_head)
    assert "Left out: old.pth does not fit" in caplog.text
    runner.model = Segmentor(self_teacher=False)
    hook.after_load_checkpoint(runner, {"state_dict": Segmentor().state_dict()})


def test_fine_tuning_with_another_head_says_what_is_left_out(
    runner: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    source = Segmentor(classes=5)
    WeightsFitHook().after_load_checkpoint(runner, source.state_dict())
    assert "shape decode_head.weight [5, 4] for [2, 4]" in caplog.text
    assert torch.equal(runner.model.backbone.weight, source.backbone.weight)
    with pytest.raises(ValueError, match="Nothing of it fits the backbone; give a checkpoint of the same network"):
        WeightsFitHook().after_load_checkpoint(runner, {"state_dict": nn.Linear(3, 4).state_dict()})


def _hold(folder: Path, connection: Any) -> None:
    with locked(folder):
        connection.send("held")
        connection.recv()


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[Any]:
    """A process that holds the folder."""
    here, there = multiprocessing.Pipe()
    process = fork_server().Process(target=_hold, args=(tmp_path, there), daemon=True)
    process.start()
    assert here.poll(120) and here.recv() == "held"
    yield process
    process.kill()


def test_a_folder_is_one_process_s_until_that_ends(tmp_path: Path, other_process: Any) -> None:
    with (
        pytest.raises(ValueError, match=rf"in use by another training \(process {other_process.pid} on "),
        locked(tmp_path),
    ):
        pass
    other_process.kill()  # as kill -9: nothing is tidied up
    other_process.join()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    with locked(tmp_path):  # and again
        pass


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError), locked(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_what_is_lost_counts_from_the_checkpoint_that_resume_takes(tmp_path: Path) -> None:
    stopped = SimpleNamespace(iter=10)
    assert what_is_lost(tmp_path, stopped) == f"{tmp_path} holds no checkpoint yet; 10 iterations are lost"
    checkpoint = {"state_dict": {}, "optimizer": {}, "message_hub": {}, "meta": {"epoch": 2, "iter": 8}}
    torch.save(checkpoint, tmp_path / "epoch_2.pth")
    taken = f"--resume goes on from {tmp_path / 'epoch_2.pth'} (epoch 2, iteration 8); "
    assert what_is_lost(tmp_path, stopped) == f"{taken}2 iterations are lost"
    assert what_is_lost(tmp_path, SimpleNamespace(iter=8)) == f"{taken}nothing is lost"
