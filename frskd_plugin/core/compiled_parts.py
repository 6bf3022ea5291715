"""Runs parts of a model through ``torch.compile`` while they train, and nothing else of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class CompiledParts:
    """Parts of a model whose forward pass is compiled in training; in eval mode they run as they are.

    Compiling happens in the first training step. Parameters and their names in checkpoints stay. A model with losses
    between its parts (samplers, metrics, data-dependent sizes) breaks a graph of the whole often, its parts do not.

    Args:
        model: the model, which is changed until `restore`.
        parts: names of modules in it, such as ``'backbone'``; of a list of modules each one is compiled; ``''`` is the
            model itself.
        options: of ``torch.compile``.

    Raises:
        ValueError: the model has no such part.

    Example:
        >>> model = nn.ModuleDict({"neck": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        >>> compiled = CompiledParts(model, ["neck"], backend="eager")
        >>> model["neck"](torch.ones(1, 2)).shape
        torch.Size([1, 2])
        >>> compiled.restore()
    """

    def __init__(self, model: nn.Module, parts: Sequence[str], **options: Any) -> None:
        self.enabled = True
        self._modules = [module for name in parts for module in _modules_of(model, name)]
        for module in self._modules:
            module.forward = _Switch(self, module, torch.compile(module.forward, **options))

    def restore(self) -> None:
        """Give the parts their own forward passes back."""
        for module in self._modules:
            del module.forward  # the one of its class comes to light
        self._modules = []

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the parts as they are, for a block."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before


class _Switch:
    """Stands in for the forward pass of a module; a copy of the module gets the plain one."""

    def __init__(self, parts: CompiledParts, module: nn.Module, compiled: Callable[..., Any]) -> None:
        self.parts, self.module, self.compiled = parts, module, compiled
        self.plain = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        chosen = self.compiled if self.parts.enabled and self.module.training else self.plain
        return chosen(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return copy.deepcopy(self.plain, memo)  # a bound method: it is bound to the copy of the module


def _modules_of(model: nn.Module, name: str) -> list[nn.Module]:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        known = ", ".join(child for child, _ in model.named_children())
        raise ValueError(
            f"{type(model).__name__} has no part {name!r} to compile: expected names of modules in it, such as {known}."
        ) from None
    return list(module) if isinstance(module, nn.ModuleList) else [module]
