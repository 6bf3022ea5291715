"""Checks that the support matrix makes of a training step, and the smallest model and images for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frskd_plugin.commands.support import OWN_NETWORKS

BATCH = 2
LR = 1e-3
STEP = 32  # sizes to try are multiples of this, among others
NAMES_SHOWN = 3


class Unsupported(Exception):
    """A promise that a model does not keep; its text is the cell of the table."""


def describe(error: BaseException) -> str:
    """Return an error in one line, with its class where that says something."""
    text = " ".join(str(error).split())
    told = isinstance(error, (Unsupported, pytest.fail.Exception, pytest.skip.Exception))
    return text if told else f"{type(error).__name__}: {text}"


def check_finite(losses: dict[str, Any]) -> None:
    """Refuse a term of the loss that is not finite."""
    for name, value in losses.items():
        if "loss" in name and not torch.as_tensor(value).isfinite().all():
            raise Unsupported(f"{name} is not finite: {value}")


def check_gradients(model: nn.Module, idle: Collection[str] = ()) -> None:
    """Refuse a trained parameter without a finite gradient; those named in ``idle`` may go without one."""
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    without = [name for name, grad in trained if grad is None and name not in idle]
    wild = [name for name, grad in trained if grad is not None and not grad.isfinite().all()]
    for bad, what in ((without, "get no gradient"), (wild, "get a gradient that is not finite")):
        if bad:
            raise Unsupported(f"{len(bad)} parameters {what}: {', '.join(bad[:NAMES_SHOWN])}")


def check_same_logits(logits: Tensor, expected: Tensor) -> None:
    """Refuse logits that are not finite or not, bit for bit, the plain model's."""
    if not logits.isfinite().all():
        raise Unsupported("after the step its logits are not finite")
    if not torch.equal(logits, expected):
        raise Unsupported("in evaluation it does not give the plain model's logits")


@functools.cache
def smallest_model(module: str) -> str:
    """Return the model of a timm module with the fewest parameters, counted on the meta device, without memory.

    One of `OWN_NETWORKS` stands for itself.
    """
    if module in OWN_NETWORKS:
        return module

    def num_parameters(name: str) -> float:
        try:
            with torch.device("meta"):
                return sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        except (NotImplementedError, RuntimeError):  # its constructor needs real numbers: taken if there is no other
            return float("inf")

    return min(timm.list_models(module=module), key=lambda name: (num_parameters(name), name))


@dataclass(frozen=True)
class Fit:
    """Image size, the arguments that make a model for it, and channels, height and width of each map."""

    size: int
    kwargs: dict[str, int]
    maps: list[tuple[int, int, int]]

    @property
    def strides(self) -> list[float]:
        """Image size / map size, whole numbers as such."""
        strides = [round(self.size / width, 2) for _, _, width in self.maps]
        return [int(stride) if stride.is_integer() else stride for stride in strides]


def smallest_fit(
    name: str, make: Callable[..., nn.Module], take_maps: Callable[[nn.Module, Tensor], Sequence[Tensor]]
) -> Fit:
    """Return the smallest square image on which a model runs and keeps its maps of different stride apart.

    Sizes are tried in ascending order on the meta device, without memory or arithmetic, and in earnest only where a
    model cannot do without numbers. ``make`` takes the name and further arguments, ``take_maps`` model and images.
    """
    native = int(timm.get_pretrained_cfg(name).input_size[-1])
    fractions = [native // k for k in range(2, native // STEP + 1) if native % k == 0 and native % STEP]
    error: Exception | None = None
    for device in ("meta", "cpu"):
        for size in sorted({*range(STEP, native, STEP), *fractions, native}):
            try:
                with torch.device(device), torch.no_grad():
                    model, kwargs = _make_for_size(make, name, size)
                    maps = take_maps(model.eval(), torch.zeros(BATCH, 3, size, size))
            except Exception as caught:  # whatever a model raises for a size that it cannot take
                error = caught
                continue
            if size == native or _kept_apart(model, maps):
                return Fit(size, kwargs, [(f.shape[1], f.shape[2], f.shape[3]) for f in maps])
    raise Unsupported(f"no image size up to {native} works: {type(error).__name__}: {error}") from error


def _make_for_size(make: Callable[..., nn.Module], name: str, size: int) -> tuple[nn.Module, dict[str, Any]]:
    try:
        return make(name, img_size=size), {"img_size": size}
    except TypeError:  # most convolutional models have no such argument
        return make(name), {}


def _kept_apart(model: nn.Module, maps: Sequence[Tensor]) -> bool:
    """Tell if the maps have as many sizes as timm lists strides, and none is a single pixel.

    Nothing of a single pixel is distilled, and batch norm over two of them makes gradients explode.
    """
    strides = {info["reduction"] for info in getattr(model, "model", model).feature_info}
    sizes = {tuple(feat.shape[-2:]) for feat in maps}
    return len(sizes) >= min(len(strides), len(maps)) and (1, 1) not in sizes
