"""Drives the weights of the distillation terms over the training (reference section 9)."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from frskd_plugin.core.frskd_loss import FRSKDLoss
from frskd_plugin.core.schedule import distill_factor


class DistillWarmupHook(Hook):
    """Sets the factor on alpha and beta: 0 before ``begin``, then ``exp(-5 (1 - t)^2)`` up to 1 at ``end``.

    The factor follows from the runner's epoch or iteration alone, so it is right after a resume.

    Args:
        begin: epochs (or iterations) without distillation; the self-teacher's own loss is trained from the start.
        end: epochs (or iterations) after which the factor is 1; None is the end of the training.
        by_epoch: whether the two count epochs or iterations.

    Raises:
        ValueError: if the ramp ends before it begins.
    """

    def __init__(self, begin: int, end: int | None = None, by_epoch: bool = True) -> None:
        distill_factor(0, begin, begin if end is None else end)  # checks both
        self.begin = begin
        self.end = end
        self.by_epoch = by_epoch

    def before_train(self, runner: Any) -> None:
        """Check that there is something to drive.

        Raises:
            ValueError: if the model has no `FRSKDLoss`, the loop counts iterations only, or the ramp ends before it
                begins.
        """
        if not self._losses(runner):
            raise ValueError(
                "DistillWarmupHook found no FRSKDLoss in the model. Give the model a `self_teacher` with "
                "`loss_distill=dict(type='FRSKDLoss', ...)` (a classifier: `method=dict(name='frskd', ...)`), or take "
                "the hook out of `custom_hooks`."
            )
        if self.by_epoch and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                f"DistillWarmupHook counts epochs, and {type(runner.train_loop).__name__} counts iterations: set "
                "`by_epoch=False` and give `begin` and `end` in iterations."
            )
        distill_factor(0, self.begin, self._end(runner))

    def before_train_epoch(self, runner: Any) -> None:
        """Set the factor of an epoch."""
        if self.by_epoch:
            self._set(runner, runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Set the factor of an iteration."""
        if not self.by_epoch:
            self._set(runner, runner.iter)

    def _end(self, runner: Any) -> int:
        if self.end is not None:
            return self.end
        return runner.max_epochs if self.by_epoch else runner.max_iters

    def _set(self, runner: Any, step: int) -> None:
        factor = distill_factor(step, self.begin, self._end(runner))
        for loss in self._losses(runner):
            loss.factor = factor
        runner.message_hub.update_scalar("train/distill_factor", factor)

    @staticmethod
    def _losses(runner: Any) -> list[FRSKDLoss]:
        return [module for module in runner.model.modules() if isinstance(module, FRSKDLoss)]
