"""Image folders, the sets of the paper that lie in them, and the transforms by which they are read.

``data_root/split/class/image`` is read by torchvision's `ImageFolder`. The transforms are torchvision's
(``torchvision.transforms.v2``) by name. They end with a uint8 image: a config normalises later, for the whole batch on
the device.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class ImageSet:
    """Complete set as it lies on disk."""

    num_classes: int
    images: dict[str, int]  # of each split, whose name is that of a folder
    per_class: dict[str, int]  # images of each class, for the splits in which all classes have as many
    sources: dict[str, str | None]  # published file -> what it unpacks to; None if it is not an archive
    url: str  # the page of the authors


IMAGE_SETS = {
    "cifar100": ImageSet(
        100,
        {"train": 50000, "test": 10000},
        {"train": 500, "test": 100},
        {"cifar-100-python.tar.gz": "cifar-100-python"},
        "https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "tinyimagenet": ImageSet(
        200,
        {"train": 100000, "val": 10000},
        {"train": 500, "val": 50},
        {"tiny-imagenet-200.zip": "tiny-imagenet-200"},
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    "cub200": ImageSet(
        200,
        {"train": 5994, "test": 5794},
        {},
        {"CUB_200_2011.tgz": "CUB_200_2011"},
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
    ),
    "mit67": ImageSet(
        67,
        {"train": 5360, "test": 1340},
        {},
        {"indoorCVPR_09.tar": "Images", "TrainImages.txt": None, "TestImages.txt": None},
        "https://web.mit.edu/torralba/www/indoor.html",
    ),
    "stanford40": ImageSet(
        40,
        {"train": 4000, "test": 5532},
        {"train": 100},
        {"Stanford40_JPEGImages.zip": "JPEGImages", "Stanford40_ImageSplits.zip": "ImageSplits"},
        "http://vision.stanford.edu/Datasets/40actions.html",
    ),
    "dogs": ImageSet(
        120,
        {"train": 12000, "test": 8580},
        {"train": 100},
        {"images.tar": "Images", "lists.tar": "train_list.mat"},
        "http://vision.stanford.edu/aditya86/ImageNetDogs/",
    ),
    "imagenet": ImageSet(
        1000,
        {"train": 1281167, "val": 50000},
        {"val": 50},
        {
            "ILSVRC2012_img_train.tar": "train",
            "ILSVRC2012_img_val.tar": "val",
            "ILSVRC2012_devkit_t12.tar.gz": "ILSVRC2012_devkit_t12",
        },
        "https://image-net.org/challenges/LSVRC/2012/",
    ),
}


def how_to_prepare(data_root: str | Path, name: str = "NAME") -> str:
    """Return the sentence with which an error about a missing or incomplete set ends."""
    if name in IMAGE_SETS:
        source = f"{', '.join(IMAGE_SETS[name].sources)} in the folder SRC"
    else:
        source = f"the published archives in the folder SRC (NAME: {', '.join(IMAGE_SETS)})"
    return f"`python tools/prepare_data.py {name} SRC {data_root}` makes it from {source}"


# One transform: its name and arguments (`dict(type='RandomCrop', size=32, padding=4)`), or any callable.
TransformItem = Mapping[str, Any] | Callable[[Any], Any]
Transforms = TransformItem | Sequence[TransformItem] | None


def build_transforms(transforms: Transforms) -> Callable[[Any], Any]:
    """Build one callable of a transform, of several in a row, or of None (which leaves the image as it is).

    A transform is a callable or a dict with its class in ``torchvision.transforms.v2`` as ``type``. Its other keys are
    arguments, of which ``interpolation`` may be a name such as 'bicubic', and ``transforms`` a list of dicts again.

    Raises:
        ValueError: the name or the arguments are not those of a transform.
        TypeError: an item is neither a dict nor a callable.
    """
    if isinstance(transforms, Mapping) or callable(transforms):
        return _build(transforms)
    steps = [_build(item) for item in transforms or ()]
    return v2.Compose(steps) if steps else v2.Identity()


def _build(item: TransformItem) -> Callable[[Any], Any]:
    if callable(item):
        return item
    if not isinstance(item, Mapping):
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
    found = vars(v2).items()
    known: dict[str, Any] = {
        n: kind for n, kind in found if inspect.isclass(kind) and issubclass(kind, torch.nn.Module)
    }
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "such as RandomCrop, Resize or RandomHorizontalFlip"
        raise ValueError(f"`type` of a transform must be a class of torchvision.transforms.v2, got {name!r}; {hint}")
    try:
        return known[name](**arguments)
    except TypeError as error:
        raise ValueError(
            f"transform {name}: {error}; see torchvision.transforms.v2.{name} for its arguments"
        ) from error


def to_uint8(image: Any) -> Tensor:
    """Return the image that left the transforms as a uint8 tensor [3, H, W]; others raise a TypeError."""
    if isinstance(image, Image.Image):
        image = F.pil_to_tensor(image)
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"transforms must end with a uint8 image [3, H, W], got {got}; leave out ToDtype, ToImage's scaling and "
            "Normalize: images are normalised by the batch on the device"
        )
    return image.as_subclass(Tensor)


SPLITS = ("train", "val", "test")


def open_folder(data_root: str | Path, split: str, name: str = "NAME") -> ImageFolder:
    """Open the images and classes of ``data_root/split``, in the order of class and file name; no image is read."""
    folder = Path(data_root) / split
    expected = f"expected images as {folder}/<class>/<image>; {how_to_prepare(data_root, name)}"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: {expected}; `data_root` (tools/train.py --data-root) names the folder"
        )
    try:
        images = ImageFolder(str(folder), loader=read_rgb)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} is not complete ({error}): {expected}") from error
    train = Path(data_root) / "train"
    if split != "train" and train.is_dir():
        difference = sorted({path.name for path in train.iterdir() if path.is_dir()} ^ set(images.classes))
        if difference:
            some = ", ".join(difference[:3]) + (f" and {len(difference) - 3} more" if len(difference) > 3 else "")
            raise ValueError(
                f"{folder} and {train} do not have the same class folders ({some}), so their labels would differ: "
                f"{expected}"
            )
    return images


def check_complete(
    where: str | Path, classes: int, images: int, expected_classes: int | None, expected_images: int | None, hint: str
) -> None:
    """Compare the numbers of classes and images with those of the whole set; None expects nothing."""
    for what, found, expected in (("classes", classes, expected_classes), ("images", images, expected_images)):
        if expected is not None and found != expected:
            raise ValueError(
                f"{where} is not the whole set: expected {expected} {what}, found {found}; {hint}. For a set of your "
                f"own set expected_{what}=None"
            )


def read_rgb(path: str | Path) -> Image.Image:
    """Read the image in a file, in RGB; a ValueError names the file where it is damaged or has more than 8 bits."""
    try:
        with Image.open(path) as image:
            deep = has_deep_pixels(image)
            if not deep:
                return image.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders each have their own kinds of errors
        raise ValueError(
            f"image {path} cannot be decoded ({type(error).__name__}: {error}); restore the file or remove it"
        ) from error
    raise ValueError(
        f"image {path} has more than 8 bits a channel, which reading it as RGB would cut off; convert it to 8 bits in "
        "the way that suits its values"
    )


def has_deep_pixels(image: Image.Image) -> bool:
    """Tell if an open image, not loaded yet, has integers of more than 8 bits or floats in its file."""
    raw_modes = [str(part[3][0] if isinstance(part[3], tuple) else part[3]) for part in image.tile]
    return image.mode[0] in "IF" or any(";16" in mode for mode in raw_modes)


class LabelledImages(Dataset):
    """Data set of ``dict(inputs=uint8 Tensor [3, H, W], targets=int)`` around one of pairs (image, label)."""

    def __init__(self, pairs: Any, classes: list[str], targets: list[int], transforms: Transforms) -> None:
        self.classes = classes
        self.targets = targets
        self._pairs = pairs
        self._transform = build_transforms(transforms)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Return the names of the classes, as OpenMMLab's data sets give them."""
        return {"classes": tuple(self.classes)}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        image, _ = self._pairs[index]
        return {"inputs": to_uint8(self._transform(image)), "targets": self.targets[index]}


class ImageFolderDataset(LabelledImages):
    """Images of ``data_root/split/<class>/<image>``, classes in alphabetical order.

    Args:
        data_root: folder that holds the splits.
        split: 'train', 'val' or 'test'.
        transforms: from an RGB image of Pillow to one of uint8; see `build_transforms`.
        expected_classes: number of classes of the whole set; any other is an error.
        expected_images: number of images of the whole split; any other is an error.
    """

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        transforms: Transforms = None,
        expected_classes: int | None = None,
        expected_images: int | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        images = open_folder(data_root, split)
        found, hint = (len(images.classes), len(images)), how_to_prepare(data_root)
        check_complete(Path(data_root) / split, *found, expected_classes, expected_images, hint)
        super().__init__(images, images.classes, images.targets, transforms)
