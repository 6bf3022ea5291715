"""Losses and times of training steps that stay on the device until they are logged: the host does not wait for it."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch
from mmengine.hooks import IterTimerHook, LoggerHook, RuntimeInfoHook
from torch import Tensor


def is_logged(runner: Any, batch_idx: int) -> bool:
    """Tell whether a step's numbers may be logged: every ``interval`` steps, and at the end of an epoch."""
    loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
    at_end = batch_idx + 1 == len(runner.train_dataloader)
    return at_end or any(hook.every_n_inner_iters(batch_idx, hook.interval) for hook in loggers)


def log_window(runner: Any) -> int | None:
    """Return the number of steps whose numbers a line of the log averages at most; None for all of them."""
    processor = runner.log_processor
    sizes = [processor.window_size, *(custom.get("window_size", 1) for custom in processor.custom_cfg)]
    return max(sizes) if all(isinstance(size, int) for size in sizes) else None


class DeferredInfoHook(RuntimeInfoHook):
    """mmengine's `RuntimeInfoHook` that fetches the losses when they are logged, all steps of the log's window at once.

    mmengine waits for the device at each step, and keeps all losses, so that a step grows slower with the length of the
    run. What the log says is the same: ``default_hooks=dict(runtime_info=dict(type='DeferredInfoHook'))``.
    """

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        self._steps: deque[dict[str, Any]] = deque(maxlen=log_window(runner))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        runner.message_hub.update_info("iter", runner.iter)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        values = (outputs or {}).items()
        self._steps.append({name: value.detach() if isinstance(value, Tensor) else value for name, value in values})
        if not is_logged(runner, batch_idx):
            return
        for name, rates in runner.optim_wrapper.get_lr().items():
            runner.message_hub.update_scalar(f"train/{name}", rates[0])
        for step in fetch(self._steps):
            for name, value in step.items():
                runner.message_hub.update_scalar(f"train/{name}", value)
        self._steps.clear()


def fetch(steps: Any) -> list[dict[str, Any]]:
    """Return dicts of scalars with numbers in place of tensors, all fetched from the device at once.

    >>> fetch([{"loss": torch.tensor(1.5)}, {"loss": torch.tensor(2.0), "lr": 0.1}])
    [{'loss': 1.5}, {'loss': 2.0, 'lr': 0.1}]
    """
    tensors = [value.reshape(()) for step in steps for value in step.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack([tensor.to(tensors[0].device) for tensor in tensors]).tolist() if tensors else [])
    return [
        {name: next(numbers) if isinstance(value, Tensor) else value for name, value in step.items()} for step in steps
    ]


class DeferredTimerHook(IterTimerHook):
    """mmengine's `IterTimerHook` whose times of training steps are means over the steps since the last log.

    A host that runs ahead of the device sees only how long it took to ask for a step; all the work has to be done by
    the time that the losses are fetched (`DeferredInfoHook`). Validation and test are timed as ever.
    """

    _begin = 0.0

    def _before_epoch(self, runner: Any, mode: str = "train") -> None:
        super()._before_epoch(runner, mode)
        if mode == "train":
            self._begin, self._waited, self._count = self.t, 0.0, 0
        self._entered = self.t

    def _after_epoch(self, runner: Any, mode: str = "train") -> None:
        super()._after_epoch(runner, mode)
        if mode != "train":  # between two steps, where a loop counts iterations: no part of their time
            self.t = time.time()
            self._begin += self.t - self._entered

    def _before_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = "train") -> None:
        if mode == "train":
            self._waited += time.time() - self.t
        else:
            super()._before_iter(runner, batch_idx, data_batch, mode)

    def _after_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "train"
    ) -> None:
        if mode != "train":
            super()._after_iter(runner, batch_idx, data_batch, outputs, mode)
            return
        self.t, self._count = time.time(), self._count + 1
        if not is_logged(runner, batch_idx):
            return
        self.time_sec_tot += self.t - self._begin
        for _ in range(min(self._count, log_window(runner) or self._count)):
            runner.message_hub.update_scalar("train/time", (self.t - self._begin) / self._count)
            runner.message_hub.update_scalar("train/data_time", self._waited / self._count)
        done, left = runner.iter - self.start_iter + 1, runner.max_iters - runner.iter - 1
        runner.message_hub.update_info("eta", self.time_sec_tot / done * left)
        self._begin, self._waited, self._count = self.t, 0.0, 0
