"""Feature maps before their ReLU, which overhaul distillation compares, and the norms that make them (section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Network = Callable[[Tensor], tuple[list[Tensor], Tensor]]

_IN_PLACE = (torch.relu_, Tensor.relu_)
_RELUS = (F.relu, torch.relu, Tensor.relu, *_IN_PLACE)
_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_SAME = ("clone", "contiguous", "dropout", "to")  # in eval mode they give their input


class ReLUInputs(TorchFunctionMode):
    """Keep what goes into each ReLU while it is entered, whether a module or a function computes it.

    In-place ones get a copy of their input kept, so results and gradients stay what they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed: list[tuple[Tensor, Tensor]] = []  # told apart by `is`: torch.compile knows no ids

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stand-in that torch calls for each of its functions."""
        kwargs = kwargs or {}
        if func not in _RELUS:
            return func(*args, **kwargs)
        before = args[0] if args else kwargs["input"]
        if func in _IN_PLACE or kwargs.get("inplace") or args[1:2] == (True,):
            before = before.clone()
        result = func(*args, **kwargs)
        self._passed.append((result, before))
        return result

    def before(self, feat: Tensor) -> Tensor:
        """Return what entered the ReLU that gave this very tensor; the tensor itself where none did."""
        for result, before in self._passed:
            if result is feat:
                return before
        return feat


def forward_with_preactivations(student: Network, images: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Return maps, logits, and the maps before their ReLU, in one pass (as they are where none made them)."""
    watch = ReLUInputs()
    with watch:  # not `as watch`: torch.compile would bind None
        feats, logits = student(images)
    return feats, logits, [watch.before(feat) for feat in feats]


class MapNorm(NamedTuple):
    """Batch normalisation of a feature map before its ReLU.

    Attributes:
        name: of the module in its network.
        makes_map: it makes the map, alone or as the last norm of the branch that a shortcut is added to; otherwise it
            is the first norm that takes the map (pre-activation networks).
    """

    name: str
    makes_map: bool


class _NormTrace(ReLUInputs):
    """Follow which batch normalisation made each tensor, and which one takes it first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        modules = network.named_modules()
        self._names = {id(m.weight): name for name, m in modules if isinstance(m, nn.BatchNorm2d | nn.SyncBatchNorm)}
        self._alive: list[Tensor] = []  # so that ids stay unique
        self._length: dict[int, int] = {}  # functions on the longest way to a tensor
        self._makers: dict[int, str | None] = {}
        self._before_relu: dict[int, str | None] = {}
        self._takers: dict[int, str] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stand-in that torch calls for each of its functions."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        length = 1 + max((self._length.get(id(x), 0) for x in inputs), default=0)
        maker = self._maker(func, inputs)
        before = self._makers.get(id(inputs[0])) if func in _RELUS else None
        result = super().__torch_function__(func, types, args, kwargs)
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._alive.append(x)
                self._length[id(x)], self._makers[id(x)], self._before_relu[id(x)] = length, maker, before
        return result

    def _maker(self, func: Callable[..., Any], inputs: list[Tensor]) -> str | None:
        if func is F.batch_norm:
            name = next((self._names[id(x)] for x in inputs if id(x) in self._names), None)
            if name is not None:
                self._takers.setdefault(id(inputs[0]), name)
            return name
        if func.__name__ in _SUMS and len(inputs) == 2:  # a branch and a shortcut: what made the longer one
            lengths = [self._length.get(id(x), 0) for x in inputs]
            longest = [x for x, length in zip(inputs, lengths, strict=True) if length == max(lengths)]
            return self._makers.get(id(longest[0])) if len(longest) == 1 else None
        return self._makers.get(id(inputs[0])) if func.__name__ in _SAME and inputs else None

    def norm_of(self, feat: Tensor) -> MapNorm | None:
        """Return the norm of a map; None where no norm makes it or takes it."""
        before = self.before(feat)
        name = self._makers.get(id(feat)) if before is feat else self._before_relu.get(id(feat))
        if name is not None:
            return MapNorm(name, True)
        taker = self._takers.get(id(before))
        return None if taker is None else MapNorm(taker, False)


def find_map_norms(network: nn.Module, images: Tensor) -> list[MapNorm | None]:
    """Find the batch normalisation of each map before its ReLU, in one run without gradient; None where it has none."""
    trace = _NormTrace(network)
    with torch.no_grad(), trace:
        feats, _ = network(images)
    return [trace.norm_of(feat) for feat in feats]


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a batch normalisation in eval mode, without an activation that may belong to it."""
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
