"""Files of a published data set, in archives or unpacked, and where each of its images belongs.

Nothing is ever unpacked as the archive says: a reader sees names and contents, and decides itself what goes where. For
each set a function reads its lists and returns a rule: name of a published file -> where it goes
(``split/class/image``), or None if it is not needed.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from frskd_plugin.data.cifar100 import ARCHIVE_FOLDER

LIST_LIMIT = 64 << 20  # bytes of a file that is read as a whole: lists of images and classes
NESTED = re.compile(r"n\d{8}\.tar")  # ImageNet's training archive holds one of these for each class
TRAIN_IMAGE = re.compile(r"(n\d{8})_\d+\.JPEG")


@dataclass(frozen=True)
class Member:
    """One file of a data set. It can be read until its iterator goes on to the next.

    Args:
        name: path in the archive or below the folder, with '/'.
        archive: the file or folder that holds it.
        open: opens it for reading.
        size: bytes that it has or, in an archive, is said to unpack to.
        path: where it lies as a file of its own, None in an archive.
    """

    name: str
    archive: Path
    open: Callable[[], IO[bytes]]
    size: int
    path: Path | None = None

    def chunks(self, limit: int) -> Iterator[bytes]:
        """Yield the content, and no more than the limit of it, whatever the archive says about its size.

        Raises:
            ValueError: The archive is damaged, or the file has more than ``limit`` bytes.
        """
        size = 0
        if self.size <= limit:
            with naming(self.archive), self.open() as source:
                while size <= limit and (chunk := source.read(1 << 20)):
                    size += len(chunk)
                    if size <= limit:
                        yield chunk
        if max(size, self.size) > limit:
            raise ValueError(
                f"{self.archive}: {self.name} unpacks to {max(size, self.size) >> 20} MiB or more, and {limit >> 20} "
                "MiB are the most that is left for it in a set of this kind; nothing was kept: get the archive from "
                "its authors"
            )

    def copy_to(self, target: Path, limit: int, link: bool = False) -> int:
        """Write the content to a new file; with ``link`` a file that lies on disk gets a second name instead.

        Returns:
            The bytes that were written.
        """
        if link and self.path is not None:
            try:
                os.link(os.path.realpath(self.path), target)
            except OSError as error:
                raise ValueError(
                    f"--link: {self.path} cannot be linked as {target} ({error.strerror}); SRC and DST must lie on one "
                    "file system that has hard links, or leave --link out"
                ) from error
            return 0
        with open(target, "xb") as file:
            return sum(file.write(chunk) for chunk in self.chunks(limit))


class Source:
    """Published data set: an archive, or a folder of archives and unpacked files.

    Args:
        path: the archive or the folder.
        archives: file as published -> what it unpacks to; an archive beside which that lies is passed over.
    """

    def __init__(self, path: str | Path, archives: Mapping[str, str | None]) -> None:
        self.path = Path(path)
        self._archives = archives
        if not self.path.exists():
            raise FileNotFoundError(
                f"SRC: {path} is missing; expected {', '.join(archives)}, or a folder that holds it"
            )

    def members(self, nested: bool = True) -> Iterator[Member]:
        """Yield all files, in those archives of archives too if ``nested``."""
        for member in archive_members(self.path) if self.path.is_file() else self._folder_members():
            if nested and NESTED.fullmatch(PurePosixPath(member.name).name):
                with naming(member.archive), member.open() as file:
                    yield from tar_members(member.archive, file)
            else:
                yield member

    def _folder_members(self) -> Iterator[Member]:
        for folder, folders, files in os.walk(self.path, followlinks=True):
            folders.sort()
            for file in sorted(files):
                path = Path(folder) / file
                if not path.is_file():  # a pipe or a device, or a link to one: opening it would wait, or never end
                    continue
                unpacked = path.stem if NESTED.fullmatch(file) else self._archives.get(file)
                if unpacked is not None and (path.parent / unpacked).exists():
                    continue
                if self._archives.get(file) is not None:
                    yield from archive_members(path)
                else:
                    name = path.relative_to(self.path).as_posix()
                    yield Member(name, self.path, cast(Any, partial(open, path, "rb")), path.stat().st_size, path)

    def read_lists(self, *patterns: str) -> dict[str, bytes]:
        """Read the files with these names (``*_train.txt`` takes all that end so), by name without folders."""
        found: dict[str, bytes] = {}
        for member in self.members(nested=False):
            name = PurePosixPath(member.name).name
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) and not name.startswith("."):
                found[name] = b"".join(member.chunks(LIST_LIMIT))
                if set(found) == set(patterns):
                    break
        missing = [pattern for pattern in patterns if not fnmatch.filter(found, pattern)]
        if missing:
            raise FileNotFoundError(
                f"{', '.join(missing)} not found in {self.path}; SRC must be a folder with what the authors publish "
                f"({', '.join(self._archives)}), as it is or unpacked"
            )
        return found


def archive_members(path: Path) -> Iterator[Member]:
    """Yield the files of a zip or tar archive, compressed or not."""
    with naming(path):
        if path.suffix.lower() != ".zip":
            yield from tar_members(path)
            return
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                check_inside(info.filename, path)
                if not info.is_dir() and stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG):
                    yield Member(info.filename, path, partial(archive.open, info), info.file_size)


def tar_members(path: Path, file: IO[bytes] | None = None) -> Iterator[Member]:
    """Yield the regular files of a tar archive, which may itself be an open ``file`` of the archive ``path``.

    Links and devices are passed over: no published set has any.
    """
    with tarfile.open(path if file is None else None, fileobj=file) as archive:
        for info in archive:
            check_inside(info.name, path)
            if info.isreg():
                yield Member(info.name, path, cast(Any, partial(archive.extractfile, info)), info.size)


def check_inside(name: str, archive: Path) -> None:
    """Refuse the name of a member that would land outside the folder into which an archive is unpacked.

    >>> check_inside("../../.bashrc", Path("birds.tgz"))
    Traceback (most recent call last):
    ValueError: birds.tgz holds '../../.bashrc', which points outside of it; ...
    """
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise ValueError(
            f"{archive} holds {name!r}, which points outside of it; nothing was taken from it: get it from its authors"
        )


@contextmanager
def naming(archive: Path) -> Iterator[None]:
    """Turn errors that a damaged archive raises into one that names it."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(":")
        raise ValueError(f"{archive} is damaged, not complete or no archive ({reason}); download it again") from error


Rule = Callable[[PurePosixPath], PurePosixPath | None]


def cifar100(source: Source) -> Rule:
    """Take the three files of the python archive, or image folders ``{train,test}/<class>/*.png``."""
    names = [PurePosixPath(member.name) for member in source.members(nested=False)]
    if any(path.name == "meta" for path in names):
        return lambda path: place(ARCHIVE_FOLDER, path.name) if path.name in ("train", "test", "meta") else None

    def rule(path: PurePosixPath) -> PurePosixPath | None:
        is_image = path.suffix.lower() in IMG_EXTENSIONS and path.parts[-3:-2] in (("train",), ("test",))
        return place(*path.parts[-3:]) if is_image else None

    return rule


def tinyimagenet(source: Source) -> Rule:
    """Take training images by their names; validation images stand in a list with their classes and boxes."""
    val_classes = {file: rest.split()[0] for file, rest in _tables(source, "val_annotations.txt")[0].items()}

    def rule(path: PurePosixPath) -> PurePosixPath | None:
        if path.name in val_classes:
            return place("val", val_classes[path.name], path.name)
        train = TRAIN_IMAGE.fullmatch(path.name)
        return place("train", train[1], path.name) if train else None

    return rule


def cub200(source: Source) -> Rule:
    """Read tables of ``<image number> <value>``: file, class and whether the image is for training."""
    names = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    files, labels, is_train, classes = _tables(source, *names)
    if not files.keys() == labels.keys() == is_train.keys():
        counts = ", ".join(f"{n} {len(table)}" for n, table in zip(names, (files, labels, is_train), strict=False))
        raise ValueError(f"these lists must be about the same images, got {counts}; download the archive again")
    targets = {
        file: place("train" if is_train[i] == "1" else "test", classes[labels[i]], PurePosixPath(file).name)
        for i, file in files.items()
    }
    return lambda path: targets.get("/".join(path.parts[-2:]))


def mit67(source: Source) -> Rule:
    """Read lists of ``<class>/<image>``; more than half of the published images are in neither."""
    lists = source.read_lists("TrainImages.txt", "TestImages.txt")
    return _by_class_and_file(train=_lines(lists["TrainImages.txt"]), test=_lines(lists["TestImages.txt"]))


def stanford40(source: Source) -> Rule:
    """Read a list of images for each class and split: ``<class>_train.txt`` and ``<class>_test.txt``."""
    targets = {}
    for name, content in source.read_lists("*_train.txt", "*_test.txt").items():
        class_name, split = name.removesuffix(".txt").rsplit("_", 1)
        targets.update({file: place(split, class_name, file) for file in _lines(content)})
    return lambda path: targets.get(path.name)


def dogs(source: Source) -> Rule:
    """Read lists of ``<class>/<image>`` in MATLAB files."""
    lists = source.read_lists("train_list.mat", "test_list.mat")
    train, test = (list(map(str, read_mat(name, lists[name], "file_list"))) for name in sorted(lists, reverse=True))
    return _by_class_and_file(train=train, test=test)


def imagenet(source: Source) -> Rule:
    """Take training images by their names; for the others the devkit lists the numbers of the classes.

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
        if train := TRAIN_IMAGE.fullmatch(path.name):
            return place("train", train[1], path.name)
        val = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", path.name)
        if val and 1 <= int(val[1]) <= len(val_classes):
            return place("val", val_classes[int(val[1]) - 1], path.name)
        return None

    return rule


RULES: dict[str, Callable[[Source], Rule]] = {
    rule.__name__: rule for rule in (cifar100, tinyimagenet, cub200, mit67, stanford40, dogs, imagenet)
}


def place(*parts: str) -> PurePosixPath:
    """Return a path of plain names, whatever a list says.

    >>> place("train", "..", "cat.jpg")
    Traceback (most recent call last):
    ValueError: the lists of the set name 'train/../cat.jpg', which is not split/class/image
    """
    if len(parts) > 3 or any(part in ("", ".", "..") or re.search(r"[/\\\0]", part) for part in parts):
        raise ValueError(f"the lists of the set name {'/'.join(parts)!r}, which is not split/class/image")
    return PurePosixPath(*parts)


def read_mat(name: str, content: bytes, key: str) -> np.ndarray:
    """Read the array ``key`` of a MATLAB file, [N]."""
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


def _by_class_and_file(**splits: list[str]) -> Rule:
    """Return the rule of lists that name images as ``<class>/<image>``."""
    targets = {file: place(split, *PurePosixPath(file).parts) for split, files in splits.items() for file in files}
    return lambda path: targets.get("/".join(path.parts[-2:]))


def _lines(content: bytes) -> list[str]:
    """Split into lines that are not empty; bytes that are no UTF-8 are written as in Python's names of files."""
    return [line.strip() for line in content.decode(errors="surrogateescape").splitlines() if line.strip()]


def _tables(source: Source, *names: str) -> list[dict[str, str]]:
    """Read lists of lines of a key and a value, with white space between them."""
    lists, tables = source.read_lists(*names), []
    for name in names:
        rows = [line.split(maxsplit=1) for line in _lines(lists[name])]
        if any(len(row) != 2 for row in rows):
            raise ValueError(f"{name} must hold a key and a value in each line; download the archive again")
        tables.append({key: value for key, value in rows})
    return tables
