"""Averages what the processes of a distributed run have seen of the data."""

from __future__ import annotations

from typing import Any

from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook


class SyncStatisticsHook(Hook):
    """Averages the buffers of floats, such as batch normalisation's statistics, after each epoch and before validation.

    mmengine's `SyncBuffersHook` takes those of integers too. But an average of PS-KD's table, which holds the bits of
    its predictions and is the same in all processes, would overflow.
    """

    def __init__(self) -> None:
        self._averaged = False

    def after_train_epoch(self, runner: Any) -> None:
        """Average at the end of an epoch."""
        _average(runner)
        self._averaged = True

    def before_val_epoch(self, runner: Any) -> None:
        """Average before a validation in the middle of an epoch, as loops have it that count iterations."""
        if not self._averaged:
            _average(runner)
        self._averaged = False


def _average(runner: Any) -> None:
    if runner.distributed:
        all_reduce_params([buffer for buffer in runner.model.buffers() if buffer.is_floating_point()], op="mean")
