"""mIoU of the student and, where it predicts too, of the self-teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmseg.evaluation.metrics import IoUMetric


class SelfTeacherIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric``, with the self-teacher's figures under ``self_teacher.`` beside the student's.

    The teacher's stand there when the samples carry ``pred_self_teacher`` (`SelfTeacherValidationHook`).

    Args:
        **kwargs: of ``IoUMetric``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.self_teacher_metric = IoUMetric(**{**kwargs, "output_dir": None})

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        """Count the predictions of a batch."""
        super().process(data_batch, data_samples)
        teacher_samples = [
            {**sample, "pred_sem_seg": sample["pred_self_teacher"]}
            for sample in data_samples
            if "pred_self_teacher" in sample
        ]
        self.self_teacher_metric.dataset_meta = self.dataset_meta
        self.self_teacher_metric.process(data_batch, teacher_samples)

    def evaluate(self, size: int) -> dict[str, float]:
        """Figures over ``size`` images, in percent."""
        metrics = super().evaluate(size)
        if self.self_teacher_metric.results:
            teacher_metrics = self.self_teacher_metric.evaluate(size)
            metrics |= {f"self_teacher.{name}": value for name, value in teacher_metrics.items()}
        return metrics
