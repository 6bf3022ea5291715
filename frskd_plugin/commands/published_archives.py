"""Files of a published data set, in archives or unpacked, and where each of its images belongs.

Nothing is unpacked as an archive says: a reader sees names and contents, and the lists of the set decide what goes
where.
"""

from __future__ import annotations

import fnmatch
import io
import math
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from frskd_plugin.data.cifar100 import ARCHIVE_FOLDER

LIST_LIMIT = 64 << 20  # bytes of a file that is read as a whole: lists of images and classes
NESTED = re.compile(r"n\d{8}\.tar")  # ImageNet's training archive holds one of these for each class
TRAIN_IMAGE = re.compile(r"(n\d{8})_\d+\.JPEG")  # of ImageNet and Tiny ImageNet


class Member(NamedTuple):
    """One file of a data set. It can be read until its iterator goes on to the next."""

    name: str  # path in the archive or below the folder, with '/'
    source: Path  # the archive or folder that holds it
    size: int  # bytes that it has; of a file in an archive no more are ever read than are stated
    open: Callable[[], IO[bytes]]
    path: Path | None = None  # where it lies as a file of its own, None in an archive

    @contextmanager
    def opened(self, limit: float = math.inf) -> Iterator[IO[bytes]]:
        """Open it for reading; a ValueError says that it has more than ``limit`` bytes, or is damaged."""
        if self.size > limit:
            raise ValueError(
                f"{self.source}: {self.name} unpacks to {self.size >> 20} MiB, and {int(limit) >> 20} MiB are the most "
                "that is left for it in a set of this kind; nothing was kept: get the archive from its authors"
            )
        with naming(self.source), self.open() as file:
            yield file


class Source:
    """Published data set: an archive, or a folder of archives and unpacked files.

    ``archives`` maps a published file to what it unpacks to; an archive that lies beside that is passed over.
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
                with member.opened() as file:
                    yield from tar_members(member.source, file)
            else:
                yield member

    def _folder_members(self) -> Iterator[Member]:
        for folder, folders, files in os.walk(self.path, followlinks=True):
            folders.sort()
            for file in sorted(files):
                path = Path(folder) / file
                unpacked = path.stem if NESTED.fullmatch(file) else self._archives.get(file)
                # a pipe or a device, or a link to one, is passed over: opening it would wait, or never end
                if not path.is_file() or (unpacked is not None and (path.parent / unpacked).exists()):
                    continue
                if self._archives.get(file) is not None:
                    yield from archive_members(path)
                else:
                    name = path.relative_to(self.path).as_posix()
                    yield Member(name, self.path, path.stat().st_size, cast(Any, partial(open, path, "rb")), path)

    def read_lists(self, *patterns: str) -> dict[str, bytes]:
        """Read the files with these names (``*_train.txt`` takes all that end so), by name without folders."""
        found: dict[str, bytes] = {}
        for member in self.members(nested=False):
            name = PurePosixPath(member.name).name
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) and not name.startswith("."):
                with member.opened(LIST_LIMIT) as file:
                    found[name] = file.read(LIST_LIMIT)
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
                    yield Member(info.filename, path, info.file_size, partial(archive.open, info))


def tar_members(path: Path, file: IO[bytes] | None = None) -> Iterator[Member]:
    """Yield the regular files of a tar archive, which may itself be an open ``file`` of the archive ``path``.

    Links and devices are passed over: no published set has any.
    """
    with tarfile.open(path if file is None else None, fileobj=file) as archive:
        for info in archive:
            check_inside(info.name, path)
            if info.isreg():
                yield Member(info.name, path, info.size, cast(Any, partial(archive.extractfile, info)))


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


# End of the path of a published file -> where it goes, ``split/class/image``; others are not needed.
Places = dict[str, PurePosixPath]


def cifar100(source: Source) -> Places:
    """Take the three files of the python archive, or image folders ``{train,test}/<class>/*.png``."""
    names = [PurePosixPath(member.name) for member in source.members(nested=False)]
    if any(path.name == "meta" for path in names):
        return {name: place(ARCHIVE_FOLDER, name) for name in ("train", "test", "meta")}
    images = [path for path in names if path.suffix.lower() in IMG_EXTENSIONS]
    return {str(p): place(*p.parts[-3:]) for p in images if p.parts[-3:-2] in (("train",), ("test",))}


def tinyimagenet(source: Source) -> Places:
    """Read the list of validation images, with their classes and boxes; those of training say their class."""
    (table,) = _tables(source, "val_annotations.txt")
    return {file: place("val", rest.split()[0], file) for file, rest in table.items()}


def cub200(source: Source) -> Places:
    """Read tables of ``<image number> <value>``: file, class and whether the image is for training."""
    names = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    files, labels, is_train, classes = _tables(source, *names)
    if not files.keys() == labels.keys() == is_train.keys():
        counts = ", ".join(f"{n} {len(table)}" for n, table in zip(names, (files, labels, is_train), strict=False))
        raise ValueError(f"these lists must be about the same images, got {counts}; download the archive again")
    return {
        file: place("train" if is_train[i] == "1" else "test", classes[labels[i]], PurePosixPath(file).name)
        for i, file in files.items()
    }


def class_and_file(source: Source, **lists: str) -> Places:
    """Read a list of ``<class>/<image>`` for each split, as text or as a MATLAB file."""
    contents, places = source.read_lists(*lists.values()), {}
    for split, name in lists.items():
        content = contents[name]
        files = map(str, read_mat(name, content, "file_list")) if name.endswith(".mat") else _lines(content)
        places.update({file: place(split, *PurePosixPath(file).parts) for file in files})
    return places


def stanford40(source: Source) -> Places:
    """Read a list of images for each class and split: ``<class>_train.txt`` and ``<class>_test.txt``."""
    places = {}
    for name, content in source.read_lists("*_train.txt", "*_test.txt").items():
        class_name, split = name.removesuffix(".txt").rsplit("_", 1)
        places.update({file: place(split, class_name, file) for file in _lines(content)})
    return places


def imagenet(source: Source) -> Places:
    """Read the classes of the validation images out of the devkit; those of training say their class.

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
    files = (f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(val_classes) + 1))
    return {file: place("val", wnid, file) for file, wnid in zip(files, val_classes, strict=True)}


LAYOUTS: dict[str, Callable[[Source], Places]] = {
    "cifar100": cifar100,
    "tinyimagenet": tinyimagenet,
    "cub200": cub200,
    "mit67": partial(class_and_file, train="TrainImages.txt", test="TestImages.txt"),
    "stanford40": stanford40,
    "dogs": partial(class_and_file, train="train_list.mat", test="test_list.mat"),
    "imagenet": imagenet,
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


def place_of(name: str, places: Places) -> PurePosixPath | None:
    """Return where a published file goes, None if it is not needed."""
    parts = PurePosixPath(name).parts
    for start in range(len(parts)):
        if (found := places.get("/".join(parts[start:]))) is not None:
            return found
    train = TRAIN_IMAGE.fullmatch(parts[-1])
    return place("train", train[1], train[0]) if train else None


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
