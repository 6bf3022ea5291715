"""CIFAR-100 from its python archive, in any order of images, or from image folders.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of Toronto, 2009.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from frskd_plugin.core.checkpoint_file import known_name, plain
from frskd_plugin.data.image_folder import (
    LabelledImages,
    Transforms,
    build_transforms,
    check_complete,
    how_to_prepare,
    open_folder,
    to_uint8,
)


class _PlainUnpickler(pickle._Unpickler):
    """Unpickler that knows no names but those of `read_checkpoint`: a data set comes from the internet."""

    def load_build(self) -> None:
        # a stand-in itself, which later reads of this process use too
        if callable(self.stack[-2]):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it changes what a name stands for")
        super().load_build()  # type: ignore[misc]

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[dict-item]

    def find_class(self, module: str, name: str) -> Callable:
        # bytes that Python 3 writes as text, in the pickle format of Python 2
        return _latin1 if (module, name) == ("_codecs", "encode") else known_name(module, name)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def read_plain_pickle(path: Path) -> Any:
    """Return the content of a pickle of Python 2 (whose text comes as bytes) or 3; a ValueError where it holds code."""
    try:
        with path.open("rb") as file:
            return plain(_PlainUnpickler(file, encoding="bytes").load())
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever the bytes lead to
        raise ValueError(
            f"{path} cannot be read as a pickle of arrays and lists ({type(error).__name__}: {error}); "
            "unpack the published archive again"
        ) from error


ARCHIVE_FOLDER = "cifar-100-python"
SPLITS = ("train", "test")
SIDE = 32


class ImageArrays(NamedTuple):
    """Whole set: images uint8 [N, 3, H, W], targets int64 [N], and the names of the classes."""

    images: Tensor
    targets: Tensor
    classes: list[str]


def load_cifar100(
    data_root: str | Path,
    split: str = "train",
    images_per_class: int | None = None,
    expected_images: int | None = None,
) -> ImageArrays:
    """Read one split of CIFAR-100, 'train' or 'test'.

    Args:
        data_root: holds ``cifar-100-python/{train,test,meta}`` or ``{train,test}/<class>/*.png``, or is the folder
            ``cifar-100-python`` itself.
        split: 'train' or 'test'.
        images_per_class: the first images of each class, in the order in which they are stored; None reads all.
        expected_images: number of images of the whole split; any other is an error.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: a file is damaged, or the set is not complete or has too few images of a class.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    folder = find_archive_folder(data_root, split)
    arrays = _read_images(Path(data_root), split) if folder is None else _read_archive(folder, split)
    hint = how_to_prepare(data_root, "cifar100")
    check_complete(f"{data_root} ({split})", 0, len(arrays.targets), None, expected_images, hint)
    return arrays if images_per_class is None else first_of_each_class(arrays, images_per_class)


def find_archive_folder(data_root: str | Path, split: str) -> Path | None:
    """Return the folder of the python archive's files; None where ``data_root`` holds image folders."""
    root = Path(data_root)
    for folder in (root / ARCHIVE_FOLDER, root):
        if (folder / split).is_file() and (folder / "meta").is_file():
            return folder
    if (root / split).is_dir() and not (root / ARCHIVE_FOLDER).is_dir():
        return None
    raise FileNotFoundError(
        f"CIFAR-100 ({split}) is not in {root}: expected the files {root / ARCHIVE_FOLDER}/{{train,test,meta}}, or "
        f"images as {root / split}/<class>/<image>; {how_to_prepare(root, 'cifar100')}; `data_root` (tools/train.py "
        "--data-root) names the folder"
    )


def first_of_each_class(arrays: ImageArrays, images_per_class: int) -> ImageArrays:
    """Return the first images of each class, in the order of the set."""
    if images_per_class < 1:
        raise ValueError(f"images_per_class must be at least 1 or None for all, got {images_per_class}")
    order = torch.argsort(arrays.targets, stable=True)
    counts = torch.bincount(arrays.targets, minlength=len(arrays.classes))
    if int(counts.min()) < images_per_class:
        raise ValueError(
            f"images_per_class={images_per_class}, but class {arrays.classes[int(counts.argmin())]!r} has "
            f"{int(counts.min())} images; choose at most as many"
        )
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # place within the class
    kept = order[rank < images_per_class].sort().values
    return ImageArrays(arrays.images[kept], arrays.targets[kept], arrays.classes)


def _read_archive(folder: Path, split: str) -> ImageArrays:
    """Read the pickles ``split`` and ``meta``, whose keys are bytes (Python 2) or text."""
    content, meta = _read_dict(folder / split), _read_dict(folder / "meta")
    try:
        data, labels = np.asarray(content["data"]), np.asarray(content["fine_labels"])
        classes = [name.decode() if isinstance(name, bytes) else str(name) for name in meta["fine_label_names"]]
    except KeyError as error:
        raise ValueError(
            f"{folder} is not CIFAR-100's python archive: {error} is missing; {split} must hold data and fine_labels, "
            "meta fine_label_names"
        ) from error
    length = 3 * SIDE * SIDE
    if data.dtype != np.uint8 or data.shape != (len(data), length) or labels.shape != (len(data),) or not len(data):
        raise ValueError(
            f"{folder / split} must hold data uint8 [N, {length}] and N fine_labels, got {data.dtype} "
            f"{list(data.shape)} and {list(labels.shape)}; unpack the published archive again"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"{folder / split} must hold fine_labels from 0 to {len(classes) - 1}, got others")
    # copies: arrays out of a pickle may lie in memory that cannot be written
    images = torch.from_numpy(data.reshape(-1, 3, SIDE, SIDE).copy())
    return ImageArrays(images, torch.from_numpy(labels.astype(np.int64)), classes)


def _read_dict(path: Path) -> dict[str, Any]:
    content = read_plain_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dict, got {type(content).__name__}; unpack the published archive again")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _read_images(data_root: Path, split: str) -> ImageArrays:
    folder = open_folder(data_root, split, "cifar100")
    images = torch.empty(len(folder), 3, SIDE, SIDE, dtype=torch.uint8)
    for number, (path, _) in enumerate(folder.samples):
        image = to_uint8(folder.loader(path))
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"image {path} has {image.shape[2]}x{image.shape[1]} pixels, but those of CIFAR-100 have {SIDE}x{SIDE}"
            )
        images[number] = image
    return ImageArrays(images, torch.tensor(folder.targets), folder.classes)


class Cifar100Dataset(LabelledImages):
    """CIFAR-100 for an ordinary `DataLoader`, read as by `load_cifar100`; `TensorCifar100` is the fast way.

    ``transforms`` make of a uint8 tensor [3, 32, 32] another, see `build_transforms`.
    """

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        transforms: Transforms = None,
        images_per_class: int | None = None,
        expected_images: int | None = None,
    ) -> None:
        images, targets, classes = load_cifar100(data_root, split, images_per_class, expected_images)
        # of a copy, so that no transform in place writes into the set
        steps = [torch.clone, build_transforms(transforms)]
        super().__init__(TensorDataset(images, targets), classes, targets.tolist(), steps)
