"""Which image of a published data set belongs to which split and class.

Each function reads the lists of one set and returns a rule: name of a published file -> where it goes
(``split/class/image``), or None if it is not needed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from frskd_plugin.data.archives import Source
from frskd_plugin.data.cifar100 import ARCHIVE_FOLDER

Rule = Callable[[PurePosixPath], PurePosixPath | None]


def cifar100(source: Source) -> Rule:
    """The three files of the python archive as they are, or image folders ``{train,test}/<class>/*.png``."""
    names = [PurePosixPath(member.name) for member in source.members(nested=False)]
    if any(path.name == "meta" for path in names):
        return lambda path: place(ARCHIVE_FOLDER, path.name) if path.name in ("train", "test", "meta") else None

    def rule(path: PurePosixPath) -> PurePosixPath | None:
        is_image = path.suffix.lower() in IMG_EXTENSIONS and path.parts[-3:-2] in (("train",), ("test",))
        return place(*path.parts[-3:]) if is_image else None

    return rule


def tinyimagenet(source: Source) -> Rule:
    """``train/<class>/images/<class>_0.JPEG``; validation images stand in a list with their classes."""
    name = "val_annotations.txt"  # <image> <class> <box>
    val_classes = {file: rest.split()[0] for file, rest in _table(name, source.read_lists(name)[name]).items()}

    def rule(path: PurePosixPath) -> PurePosixPath | None:
        if path.name in val_classes:
            return place("val", val_classes[path.name], path.name)
        train = re.fullmatch(r"(n\d{8})_\d+\.JPEG", path.name)
        return place("train", train[1], path.name) if train else None

    return rule


def cub200(source: Source) -> Rule:
    """Tables of ``<image number> <value>``: file, class and whether the image is for training."""
    names = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    lists = source.read_lists(*names)
    files, labels, is_train, classes = (_table(name, lists[name]) for name in names)
    _check_same_ids(names[:3], files, labels, is_train)
    targets = {
        file: place("train" if is_train[i] == "1" else "test", classes[labels[i]], PurePosixPath(file).name)
        for i, file in files.items()
    }
    return _by_class_and_file(targets)


def mit67(source: Source) -> Rule:
    """Lists of ``<class>/<image>``; more than half of the published images are in neither."""
    lists = source.read_lists("TrainImages.txt", "TestImages.txt")
    return _by_class_and_file(
        {
            file: place(split, *PurePosixPath(file).parts)
            for split, name in (("train", "TrainImages.txt"), ("test", "TestImages.txt"))
            for file in _lines(lists[name])
        }
    )


def stanford40(source: Source) -> Rule:
    """A list of images for each class and split: ``<class>_train.txt`` and ``<class>_test.txt``."""
    targets = {}
    for name, content in source.read_lists("*_train.txt", "*_test.txt").items():
        class_name, split = name.removesuffix(".txt").rsplit("_", 1)
        targets.update({file: place(split, class_name, file) for file in _lines(content)})
    return lambda path: targets.get(path.name)


def dogs(source: Source) -> Rule:
    """Lists of ``<class>/<image>`` in MATLAB files."""
    lists = source.read_lists("train_list.mat", "test_list.mat")
    return _by_class_and_file(
        {
            file: place(split, *PurePosixPath(file).parts)
            for split in ("train", "test")
            for file in map(str, read_mat(f"{split}_list.mat", lists[f"{split}_list.mat"], "file_list"))
        }
    )


def imagenet(source: Source) -> Rule:
    """Training images have their class in the name; for the others the devkit lists the numbers of the classes.

    torchvision's reader of these archives is not used: it insists on their checksums (an hour of reading for a set
    that was repacked) and starts from an empty folder.
    """
    truth_name = "ILSVRC2012_validation_ground_truth.txt"
    lists = source.read_lists("meta.mat", truth_name)
    synsets = read_mat("meta.mat", lists["meta.mat"], "synsets")
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    try:
        val_classes = [wnids[int(line)] for line in _lines(lists[truth_name])]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{truth_name} must hold a class number of meta.mat in each line, got {error}") from error

    def rule(path: PurePosixPath) -> PurePosixPath | None:
        train = re.fullmatch(r"(n\d{8})_\d+\.JPEG", path.name)
        if train:
            return place("train", train[1], path.name)
        val = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", path.name)
        if val and 1 <= int(val[1]) <= len(val_classes):
            return place("val", val_classes[int(val[1]) - 1], path.name)
        return None

    return rule


RULES: dict[str, Callable[[Source], Rule]] = {
    "cifar100": cifar100,
    "tinyimagenet": tinyimagenet,
    "cub200": cub200,
    "mit67": mit67,
    "stanford40": stanford40,
    "dogs": dogs,
    "imagenet": imagenet,
}


def place(*parts: str) -> PurePosixPath:
    """A path of plain names, whatever a list says.

    Raises:
        ValueError: A part would lead somewhere else.

    Example:
        >>> place("train", "..", "cat.jpg")
        Traceback (most recent call last):
        ValueError: the lists of the set name 'train/../cat.jpg', which is not split/class/image
    """
    if len(parts) > 3 or any(part in ("", ".", "..") or re.search(r"[/\\\0]", part) for part in parts):
        raise ValueError(f"the lists of the set name {'/'.join(parts)!r}, which is not split/class/image")
    return PurePosixPath(*parts)


def read_mat(name: str, content: bytes, key: str) -> np.ndarray:
    """The array ``key`` of a MATLAB file, [N].

    Raises:
        ModuleNotFoundError: scipy, which reads these files, is not installed.
        ValueError: The file cannot be read or lacks the key.
    """
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} is a MATLAB file, which scipy reads: `pip install scipy`") from error
    try:
        return np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)[key])
    except Exception as error:  # a damaged file raises whatever the bytes lead to
        raise ValueError(
            f"{name} cannot be read as a MATLAB file with {key} ({type(error).__name__}: {error}); download it again"
        ) from error


def _by_class_and_file(targets: dict[str, PurePosixPath]) -> Rule:
    """The rule of lists that name images as ``<class>/<image>``."""
    return lambda path: targets.get("/".join(path.parts[-2:]))


def _lines(content: bytes) -> list[str]:
    """Lines that are not empty; bytes that are no UTF-8 are written as Python writes them in names of files."""
    return [line.strip() for line in content.decode(errors="surrogateescape").splitlines() if line.strip()]


def _table(name: str, content: bytes) -> dict[str, str]:
    """Lines of a key and a value, with white space between them."""
    rows = [line.split(maxsplit=1) for line in _lines(content)]
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"{name} must hold a key and a value in each line; download the archive again")
    return dict(rows)  # type: ignore[arg-type]


def _check_same_ids(names: Iterable[str], *tables: dict[str, Any]) -> None:
    if any(table.keys() != tables[0].keys() for table in tables):
        counts = ", ".join(f"{name} {len(table)}" for name, table in zip(names, tables, strict=True))
        raise ValueError(f"these lists must be about the same images, got {counts}; download the archive again")
