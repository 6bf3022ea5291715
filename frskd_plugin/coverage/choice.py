"""The smallest model of a timm module, and the smallest images that it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

import frskd_plugin.timm  # noqa: F401  (registers this package's own models)
from frskd_plugin.coverage.fault import Fault

BATCH = 2
STEP = 32  # sizes to try are multiples of this, among others


@dataclass(frozen=True)
class Fit:
    """An image size that a model takes.

    Attributes:
        size: height and width.
        kwargs: arguments with which the model is made for that size.
        maps: channels, height and width of each map.
    """

    size: int
    kwargs: dict[str, int]
    maps: list[tuple[int, int, int]]

    @property
    def strides(self) -> list[float]:
        """Image size / map size, whole numbers as such.

        >>> Fit(64, {}, [(8, 32, 32), (8, 15, 15)]).strides
        [2, 4.27]
        """
        strides = [round(self.size / width, 2) for _, _, width in self.maps]
        return [int(stride) if stride.is_integer() else stride for stride in strides]


def modules_to_try(names: Sequence[str] = ()) -> list[str]:
    """The modules of these names, or all of them: timm's, then this package's own.

    Raises:
        ValueError: there is no such module.
    """
    known = sorted(timm.list_modules(), key=lambda module: (module.startswith("cifar_"), module))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"timm {timm.__version__} has no models in a module {', '.join(unknown)}: "
            f"give names of timm.list_modules(), such as {', '.join(known[:3])}."
        )
    return list(names) or known


def smallest_model(module: str) -> str:
    """The model of a timm module with the fewest parameters, counted on the meta device: none is given memory."""
    return min(timm.list_models(module=module), key=lambda name: (_num_parameters(name), name))


def _num_parameters(name: str) -> float:
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    except (NotImplementedError, RuntimeError):  # its constructor needs real numbers: taken only if there is no other
        return float("inf")


def smallest_fit(
    name: str, make: Callable[..., nn.Module], take_maps: Callable[[nn.Module, Tensor], Sequence[Tensor]]
) -> Fit:
    """The smallest square image on which a model runs and keeps its maps of different stride apart.

    Sizes are tried in ascending order on the meta device, without memory or arithmetic, and in earnest only where a
    model cannot do without numbers.

    Args:
        name: of the timm model.
        make: name and arguments -> model.
        take_maps: model and images [B, 3, H, W] -> its maps.

    Raises:
        Fault: no size works; it says what the last one raised.
    """
    native = int(timm.get_pretrained_cfg(name).input_size[-1])
    error: Exception | None = None
    for device in ("meta", "cpu"):
        for size in image_sizes(native):
            try:
                with torch.device(device), torch.no_grad():
                    model, kwargs = _make_for_size(make, name, size)
                    maps = take_maps(model.eval(), torch.zeros(BATCH, 3, size, size))
            except Exception as caught:  # whatever a model raises for a size that it cannot take
                error = caught
                continue
            if size == native or kept_apart(model, maps):
                return Fit(size, kwargs, [(f.shape[1], f.shape[2], f.shape[3]) for f in maps])
    raise Fault(f"no image size up to {native} works: {type(error).__name__}: {error}") from error


def image_sizes(native: int) -> list[int]:
    """Sizes to try, ascending: multiples of 32, and fractions of the model's own size where that is no such multiple.

    >>> image_sizes(160), image_sizes(126)
    ([32, 64, 96, 128, 160], [32, 42, 63, 64, 96, 126])
    """
    fractions = [native // k for k in range(2, native // STEP + 1) if native % k == 0 and native % STEP]
    return sorted({*range(STEP, native, STEP), *fractions, native})


def kept_apart(model: nn.Module, maps: Sequence[Tensor]) -> bool:
    """Whether there are as many sizes of maps as timm lists strides, and none is a single pixel.

    The attention of a single pixel is constant, so nothing of it is distilled, and batch norm over two such pixels
    makes gradients explode.
    """
    strides = {info["reduction"] for info in getattr(model, "model", model).feature_info}
    sizes = {tuple(feat.shape[-2:]) for feat in maps}
    return len(sizes) >= min(len(strides), len(maps)) and (1, 1) not in sizes


def _make_for_size(make: Callable[..., nn.Module], name: str, size: int) -> tuple[nn.Module, dict[str, Any]]:
    """The model, made for one image size where it has an argument for that."""
    try:
        return make(name, img_size=size), {"img_size": size}
    except TypeError:  # most convolutional models have no such argument
        return make(name), {}
