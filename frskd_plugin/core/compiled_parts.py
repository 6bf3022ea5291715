"""Run parts of a model through ``torch.compile`` while they train, and nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class CompiledParts:
    """Parts of a model whose forward pass is compiled in training; in eval mode they run as they are.

    Compiling happens in the first training step, for the sizes of that step. Other sizes, such as a smaller last batch,
    run as they are: compiling for any size can take longer than the training. Parameters keep their names.

    Args:
        model: is changed until `restore`.
        parts: names of modules in it, such as ``'backbone'``; ``''`` is the model itself, and of a list of modules each
            one is compiled.
        any_size: run every size compiled, not only that of the first step.
        options: of ``torch.compile``.

    Raises:
        ValueError: the model has no such part.
    """

    def __init__(self, model: nn.Module, parts: Sequence[str], any_size: bool = False, **options: Any) -> None:
        self.enabled = True
        self._modules = list(dict.fromkeys(module for name in parts for module in _modules_of(model, name)))
        for module in self._modules:
            module.forward = _Switch(self, module, torch.compile(module.forward, **options), any_size)

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
    """Stand-in for the forward pass of a module; a copy of the module, or a pickled one, gets the plain one."""

    def __init__(self, parts: CompiledParts, module: nn.Module, compiled: Callable[..., Any], any_size: bool) -> None:
        self.parts, self.module, self.compiled, self.any_size = parts, module, compiled, any_size
        self.plain = module.forward
        self.sizes: list[torch.Size] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.parts.enabled and self.module.training):
            return self.plain(*args, **kwargs)
        if not self.any_size:
            sizes = [leaf.shape for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.sizes = self.sizes or sizes
            if sizes != self.sizes:
                return self.plain(*args, **kwargs)
        return self.compiled(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[nn.Module, str]]:
        return getattr, (self.module, "forward")  # of the copy, which has none of its own yet: that of its class


def _modules_of(model: nn.Module, name: str) -> list[nn.Module]:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        known = ", ".join(child for child, _ in model.named_children())
        raise ValueError(
            f"{type(model).__name__} has no part {name!r} to compile: expected names of modules in it, such as {known}."
        ) from None
    return list(module) if isinstance(module, nn.ModuleList) else [module]
