"""Transforms of torchvision (``torchvision.transforms.v2``) by name, and those of the paper's data sets.

They end with a uint8 image: a config normalises later, for the whole batch on the device.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

# One transform: its name and arguments (`dict(type='RandomCrop', size=32, padding=4)`), or any callable.
TransformItem = Mapping[str, Any] | Callable[[Any], Any]
Transforms = TransformItem | Sequence[TransformItem] | None

_FLIP: dict[str, Any] = dict(type="RandomHorizontalFlip")
_LARGE: dict[str, list[dict[str, Any]]] = {
    "train": [dict(type="RandomResizedCrop", size=224), _FLIP],
    "test": [dict(type="Resize", size=256), dict(type="CenterCrop", size=224)],
}
# Training and test images of the paper (section 4.1).
STANDARD_TRANSFORMS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "cifar100": {"train": [dict(type="RandomCrop", size=32, padding=4), _FLIP], "test": []},
    "tinyimagenet": {
        "train": [dict(type="RandomResizedCrop", size=32), _FLIP],
        "test": [dict(type="Resize", size=32)],
    },
    **{name: _LARGE for name in ("cub200", "mit67", "stanford40", "dogs", "imagenet")},
}


def standard_transforms(name: str, train: bool) -> list[dict[str, Any]]:
    """The paper's transforms of a data set, as dicts of a new list.

    Raises:
        ValueError: The data set is none of the paper's.

    Example:
        >>> standard_transforms("cub200", train=False)
        [{'type': 'Resize', 'size': 256}, {'type': 'CenterCrop', 'size': 224}]
    """
    if name not in STANDARD_TRANSFORMS:
        raise ValueError(f"expected a data set out of {', '.join(STANDARD_TRANSFORMS)}, got {name!r}")
    return copy.deepcopy(STANDARD_TRANSFORMS[name]["train" if train else "test"])


def build_transforms(transforms: Transforms) -> Callable[[Any], Any]:
    """One callable of a transform, of several in a row, or of None (which leaves the image as it is).

    A transform is a callable or a dict with its class in ``torchvision.transforms.v2`` as ``type``. Its other keys are
    arguments, of which ``interpolation`` may be a name such as 'bicubic', and ``transforms`` a list of dicts again.

    Raises:
        ValueError: The name or the arguments are not those of a transform.
        TypeError: An item is neither a dict nor a callable.

    Example:
        >>> build_transforms([dict(type="Resize", size=8, interpolation="bicubic")])(torch.zeros(3, 4, 4)).shape
        torch.Size([3, 8, 8])
    """
    if transforms is None:
        return v2.Identity()
    if isinstance(transforms, Mapping) or callable(transforms):
        return _build(transforms)
    steps = [_build(item) for item in transforms]
    return v2.Compose(steps) if steps else v2.Identity()


def _build(item: TransformItem) -> Callable[[Any], Any]:
    if not isinstance(item, Mapping):
        if callable(item):
            return item
        raise TypeError(
            "a transform must be a dict such as dict(type='RandomHorizontalFlip') or a callable, "
            f"got {item!r} ({type(item).__name__})"
        )
    arguments = dict(item)
    name = arguments.pop("type", None)
    if isinstance(arguments.get("interpolation"), str):
        arguments["interpolation"] = InterpolationMode(arguments["interpolation"])
    if "transforms" in arguments:  # those that hold others, such as RandomApply
        arguments["transforms"] = [_build(inner) for inner in arguments["transforms"]]
    try:
        return _transform_class(name)(**arguments)
    except TypeError as error:
        raise ValueError(
            f"transform {name}: {error}; see torchvision.transforms.v2.{name} for its arguments"
        ) from error


def _transform_class(name: Any) -> type:
    """The transform of torchvision with this name."""
    known = [n for n in dir(v2) if inspect.isclass(getattr(v2, n)) and issubclass(getattr(v2, n), torch.nn.Module)]
    if name in known:
        return getattr(v2, name)
    close = difflib.get_close_matches(str(name), known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "such as RandomCrop, Resize or RandomHorizontalFlip"
    raise ValueError(f"`type` of a transform must be a class of torchvision.transforms.v2, got {name!r}; {hint}")


def to_uint8(image: Any) -> Tensor:
    """The image that left the transforms as a uint8 tensor [3, H, W].

    Raises:
        TypeError: It is no uint8 image, say because the transforms normalise it.
    """
    if isinstance(image, Image.Image):
        image = F.pil_to_tensor(image)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"transforms must end with a uint8 image [3, H, W], got {got}; leave out ToDtype, ToImage's scaling and "
            "Normalize: images are normalised by the batch on the device"
        )
    return image.as_subclass(Tensor)
