"""Compiles the parts of a segmentor for the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from torch import nn

from frskd_plugin.core.compiled_parts import CompiledParts
from frskd_plugin.mmengine.self_teacher_validation_hook import unwrap_model

DEFAULT_PARTS = ("backbone", "neck", "decode_head", "self_teacher.neck", "self_teacher.head")


class CompileHook(Hook):
    """Runs networks of a segmentor through ``torch.compile`` while it trains (`CompiledParts`).

    mmengine's ``compile=True`` takes the whole model, whose losses break the graph at each step. Only the size of the
    first batch runs compiled; a smaller last batch, validation and test run as ever.

    Args:
        parts: names of modules in the model; None: those of backbone, neck, decode head and self-teacher that it has.
        any_size: run every size compiled, not only that of the first batch.
        options: of ``torch.compile``, such as ``mode='max-autotune'``.

    Raises:
        ValueError: when the training begins, if the model has no such part.
    """

    def __init__(self, parts: Sequence[str] | None = None, any_size: bool = False, **options: Any) -> None:
        self.parts = parts
        self.any_size = any_size
        self.options = options
        self._compiled: CompiledParts | None = None

    def before_train(self, runner: Any) -> None:
        """Prepare the parts; the first step compiles them."""
        model = unwrap_model(runner.model)
        parts = default_parts(model) if self.parts is None else self.parts
        if not parts:
            raise ValueError(
                f"CompileHook found none of {', '.join(DEFAULT_PARTS)} in {type(model).__name__}: name what to compile "
                f"with `parts`, or take the hook out of `custom_hooks`."
            )
        self._compiled = CompiledParts(model, parts, self.any_size, **self.options)

    def after_train(self, runner: Any) -> None:
        """Leave the model as it was."""
        if self._compiled is not None:
            self._compiled.restore()
            self._compiled = None


def default_parts(model: nn.Module) -> list[str]:
    """Those of `DEFAULT_PARTS` that a model has."""
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    return [name for name in DEFAULT_PARTS if name in names]
