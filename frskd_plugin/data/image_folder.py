"""Image folders: ``data_root/split/class/image``, read by torchvision's `ImageFolder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from frskd_plugin.data.catalog import how_to_prepare
from frskd_plugin.data.transforms import Transforms, build_transforms, to_uint8

SPLITS = ("train", "val", "test")


def open_folder(data_root: str | Path, split: str, name: str = "NAME") -> ImageFolder:
    """The images and classes of ``data_root/split``, in the order of class and file name; no image is read.

    Args:
        name: of the data set in `frskd_plugin.data.catalog`, for error messages.

    Raises:
        FileNotFoundError: The folder, or a class folder's images, are missing.
        ValueError: The class folders are not those of the training split, so labels would not mean the same.
    """
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
            raise ValueError(
                f"{folder} and {train} do not have the same class folders ({_some(difference)}), so their labels would "
                f"differ: {expected}"
            )
    return images


def check_complete(
    where: str | Path, classes: int, images: int, expected_classes: int | None, expected_images: int | None, hint: str
) -> None:
    """Compare the numbers of classes and images with those of the whole set; None expects nothing.

    Raises:
        ValueError: Says what was expected and found, and gives the hint.
    """
    for what, found, expected in (("classes", classes, expected_classes), ("images", images, expected_images)):
        if expected is not None and found != expected:
            raise ValueError(
                f"{where} is not the whole set: expected {expected} {what}, found {found}; {hint}. For a set of your "
                f"own set expected_{what}=None"
            )


def read_rgb(path: str | Path) -> Image.Image:
    """The image in a file, in RGB.

    Raises:
        ValueError: Names the file that cannot be decoded, or has more than 8 bits a channel.
    """
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
    """Say whether an open image, not loaded yet, has integers of more than 8 bits or floats in its file."""
    raw_modes = [str(part[3][0] if isinstance(part[3], tuple) else part[3]) for part in image.tile]
    return image.mode[0] in "IF" or any(";16" in mode for mode in raw_modes)


class ImageFolderDataset(Dataset):
    """The images of ``data_root/split/<class>/<image>``, classes in alphabetical order.

    Args:
        data_root: folder that holds the splits.
        split: 'train', 'val' or 'test'.
        transforms: from an RGB image of Pillow to one of uint8; see `build_transforms`.
        expected_classes: number of classes of the whole set; any other is an error.
        expected_images: number of images of the whole split; any other is an error.

    Items are ``dict(inputs=uint8 Tensor [3, H, W], targets=int)``.

    Raises:
        FileNotFoundError: The split is missing.
        ValueError: It is not complete, or (when the item is read) an image is broken.
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
        self._images = open_folder(data_root, split)
        check_complete(
            Path(data_root) / split,
            len(self._images.classes),
            len(self._images),
            expected_classes,
            expected_images,
            how_to_prepare(data_root),
        )
        self.classes: list[str] = self._images.classes
        self.targets: list[int] = self._images.targets
        self._transform = build_transforms(transforms)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Names of the classes, as OpenMMLab's data sets give them."""
        return {"classes": tuple(self.classes)}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        image, target = self._images[index]
        return {"inputs": to_uint8(self._transform(image)), "targets": target}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
