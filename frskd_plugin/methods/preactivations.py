"""What entered the ReLU that made a map: overhaul distillation compares maps before it (reference section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frskd_plugin.methods.base import StudentForward

_IN_PLACE = (torch.relu_, Tensor.relu_)
_RECTIFIERS = (F.relu, torch.relu, Tensor.relu, *_IN_PLACE)


class RectifierWatch(TorchFunctionMode):
    """While it is entered, keeps what goes into each ReLU, whether a module or a function computes it.

    In-place ones get a copy of their input kept, so results and gradients stay what they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[int, tuple[Tensor, Tensor]] = {}  # the result is kept with it, so that ids stay unique

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of each of its functions."""
        kwargs = kwargs or {}
        if func not in _RECTIFIERS:
            return func(*args, **kwargs)
        before = args[0] if args else kwargs["input"]
        if func in _IN_PLACE or kwargs.get("inplace") or args[1:2] == (True,):
            before = before.clone()
        result = func(*args, **kwargs)
        self._passed[id(result)] = (result, before)
        self.on_rectified(result)
        return result

    def on_rectified(self, result: Tensor) -> None:
        """For subclasses: a ReLU has just given ``result``."""

    def before(self, feat: Tensor) -> Tensor:
        """What entered the ReLU that gave this very tensor; the tensor itself where none did."""
        return self._passed[id(feat)][1] if id(feat) in self._passed else feat


def forward_with_preactivations(student: StudentForward, images: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """One pass that gives maps, logits, and the maps before their ReLU (as they are where none made them).

    Args:
        student: images -> (feats, logits).
        images: [B, C, H, W].
    """
    watch = RectifierWatch()
    with watch:  # not `as watch`: torch.compile would bind None
        feats, logits = student(images)
    return feats, logits, [watch.before(feat) for feat in feats]


class _NormWatch(RectifierWatch):
    """Notes at each ReLU which batch normalisation of as many channels ran last."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[int, nn.BatchNorm2d] = {}  # channels -> the one that ran last
        self.norms: dict[int, nn.BatchNorm2d] = {}  # id of the rectified map -> the one before it

    def on_rectified(self, result: Tensor) -> None:
        if result.ndim == 4 and result.shape[1] in self.last:
            self.norms[id(result)] = self.last[result.shape[1]]


def norms_behind(network: nn.Module, images: Tensor) -> list[nn.BatchNorm2d | None]:
    """The batch normalisation that ran last before the ReLU of each map; None where a map has none.

    Args:
        network: images -> (feats, logits), run once without gradient and in the mode it is in.
        images: [B, C, H, W].
    """
    watch = _NormWatch()

    def note(norm: nn.Module, args: object) -> None:
        watch.last[norm.num_features] = norm  # type: ignore[index, assignment]

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        with torch.no_grad(), watch:
            feats, _ = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [watch.norms.get(id(feat)) for feat in feats]
