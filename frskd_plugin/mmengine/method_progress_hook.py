"""Tells a training method how far training is."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from frskd_plugin.methods import Method


class MethodProgressHook(Hook):
    """Calls `Method.set_progress` at the start of each epoch, or of each step where the loop counts iterations only.

    The progress follows from the runner's epoch or iteration alone, so it is right after a resume.
    """

    def before_train_epoch(self, runner: Any) -> None:
        """Epochs trained so far, and epochs in all."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            _tell(runner, runner.epoch, runner.max_epochs)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """The same in passes over the data, where the loop does not count them."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            steps = len(runner.train_dataloader)
            _tell(runner, runner.iter / steps, runner.max_iters / steps)


def _tell(runner: Any, epoch: float, max_epochs: float) -> None:
    for module in runner.model.modules():
        if isinstance(module, Method):
            module.set_progress(epoch, max_epochs)
