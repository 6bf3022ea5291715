"""Compiles the parts of a segmentor for the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from frskd_plugin.core.compiled_parts import CompiledParts

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
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        parts = self.parts if self.parts is not None else [name for name in DEFAULT_PARTS if _has(model, name)]
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


def _has(model: nn.Module, name: str) -> bool:
    try:
        return isinstance(model.get_submodule(name), nn.Module)
    except AttributeError:
        return False
