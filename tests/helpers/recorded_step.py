"""CPU stand-in for a CUDA graph: the operators of a step, recorded once and run again with the same constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# what makes the host wait for a GPU, which no capture allows
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default}


def record_step(step: Callable[[], Tensor], stream: object = None) -> Callable[[], Tensor]:
    """As `capture_step`: recording changes no tensor, and a replay runs nothing of Python's."""
    recorder = _Recorder()
    with recorder:
        output = step()
    with torch.no_grad():
        for tensor, before in recorder.outside:
            tensor.copy_(before)
    return lambda: recorder.replay(output)


class _Recorder(TorchDispatchMode):
    """Tensors are told apart by their storage: autograd makes new objects of what it has saved."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.seen: set[int] = set()
        self.made: set[int] = set()
        self.outside: list[tuple[Tensor, Tensor]] = []  # what the step did not make, and its values before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            if _storage(tensor) not in self.seen:
                self.seen.add(_storage(tensor))
                self.outside.append((tensor.detach(), tensor.detach().clone()))
        result = func(*args, **kwargs)
        fresh = {_storage(tensor) for tensor in _tensors(result)} - self.seen
        self.made |= fresh
        self.seen |= fresh
        self.calls.append((func, args, kwargs, result))  # which keeps the storages alive, and apart
        return result

    @torch.no_grad()
    def replay(self, output: Tensor) -> Tensor:
        storages: dict[int, torch.UntypedStorage] = {}

        def now(value: Any) -> Any:
            if not isinstance(value, Tensor) or _storage(value) not in storages:
                return value
            new = torch.empty(0, dtype=value.dtype)
            return new.set_(storages[_storage(value)], value.storage_offset(), value.size(), value.stride())

        for func, args, kwargs, result in self.calls:
            found = func(*tree_map(now, args), **tree_map(now, kwargs))
            for before, after in zip(_tensors(result), _tensors(found), strict=True):
                if _storage(before) in self.made:
                    storages.setdefault(_storage(before), after.untyped_storage())
        return now(output)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
