"""Switches the self-teacher's predictions on while validating."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper


def unwrap_model(model: Any) -> Any:
    """The model itself, out of a DDP wrapper."""
    return model.module if is_model_wrapper(model) else model


class SelfTeacherValidationHook(Hook):
    """Lets the self-teacher predict beside the student at each validation, so that both accuracies are logged.

    It costs a second pass through the network. Without it, or with ``enabled=False``, the teacher is never run outside
    training.

    It serves every model that has the attribute ``predict_self_teacher``: `FRSKDEncoderDecoder`, `TimmClassifier`.

    Args:
        enabled: the switch.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def before_val_epoch(self, runner: Any) -> None:
        """Switch on."""
        self._set(runner, self.enabled)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Switch off."""
        self._set(runner, False)

    @staticmethod
    def _set(runner: Any, value: bool) -> None:
        model = unwrap_model(runner.model)
        if hasattr(model, "predict_self_teacher"):
            model.predict_self_teacher = value
