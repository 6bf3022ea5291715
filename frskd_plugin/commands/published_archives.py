"""The files of a published data set, in archives or unpacked, and where each of its images belongs.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from frskd_plugin.data.cifar100 import ARCHIVE_FOLDER

LIST_LIMIT = 64 << 20  # bytes of a file that is read as a whole: lists of images and classes
NESTED = re.compile(r"n\d{8}\.tar")  # ImageNet's training archive holds one of these for each class


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

    def read(self) -> bytes:
        """Return the whole content.

        Raises:
            ValueError: The archive is damaged, or the file is no list: it is too large.
        """
        return b"".join(self._chunks(LIST_LIMIT))

    def copy_to(self, target: Path, limit: int, link: bool = False) -> int:
        """Write the content to a new file; with ``link`` a file that lies on disk gets a second name instead.

        Returns:
            The bytes that were written.

        Raises:
            ValueError: The archive is damaged, the file has more than ``limit`` bytes, or no link can be made.
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
            return sum(file.write(chunk) for chunk in self._chunks(limit))

    def _chunks(self, limit: int) -> Iterator[bytes]:
        """Yield the content, and no more than the limit of it, whatever the archive says about its size."""
        size = self.size
        if size <= limit:
            size = 0
            with naming(self.archive), self.open() as source:
                while size <= limit and (chunk := source.read(1 << 20)):
                    size += len(chunk)
                    if size <= limit:
                        yield chunk
        if size > limit:
            raise ValueError(
                f"{self.archive}: {self.name} unpacks to {size >> 20} MiB or more, and {limit >> 20} MiB are the most "
                "that is left for it in a set of this kind; nothing was kept: get the archive from its authors"
            )


class Source:
    """A published data set: an archive, or a folder of archives and unpacked files.

    Args:
        path: the archive or the folder.
        archives: file as published -> what it unpacks to; an archive beside which that lies is passed over.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
    """

    def __init__(self, path: str | Path, archives: Mapping[str, str | None]) -> None:
        self.path = Path(path)
        self._archives = archives
        if not self.path.exists():
            raise FileNotFoundError(
                f"SRC: {path} is missing; expected {', '.join(archives)}, or a folder that holds it"
            )

    def members(self, nested: bool = True) -> Iterator[Member]:
        """All files, in those archives of archives too if ``nested``.

        Raises:
            ValueError: An archive is damaged, or a name points outside of it.
        """
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
                    name, size = path.relative_to(self.path).as_posix(), path.stat().st_size
                    yield Member(name, self.path, partial(_open_file, path), size, path)

    def read_lists(self, *patterns: str) -> dict[str, bytes]:
        """Contents of the files with these names (``*_train.txt`` takes all that end so), by name without folders.

        Raises:
            FileNotFoundError: Says which are missing, and in what they are published.
        """
        found: dict[str, bytes] = {}
        for member in self.members(nested=False):
            name = PurePosixPath(member.name).name
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) and not name.startswith("."):
                found[name] = member.read()
                if len(found) == len(patterns) and set(found) == set(patterns):
                    break
        missing = [pattern for pattern in patterns if not fnmatch.filter(found, pattern)]
        if missing:
            raise FileNotFoundError(
                f"{', '.join(missing)} not found in {self.path}; SRC must be a folder with what the authors publish "
                f"({', '.join(self._archives)}), as it is or unpacked"
            )
        return found


def archive_members(path: Path) -> Iterator[Member]:
    """The files of a zip or tar archive, compressed or not.

    Raises:
        ValueError: It is damaged or no archive, or a name in it points outside.
    """
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
    """The regular files of a tar archive, which may itself be an open ``file`` of the archive ``path``.

    Links and devices are passed over: no published set has any.
    """
    with tarfile.open(path if file is None else None, fileobj=file) as archive:
        for info in archive:
            check_inside(info.name, path)
            if info.isreg():
                yield Member(info.name, path, partial(_open_tar_member, archive, info), info.size)


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Any:
    return archive.extractfile(info)


def check_inside(name: str, archive: Path) -> None:
    """Refuse the name of a member that would land outside the folder into which an archive is unpacked.

    Raises:
        ValueError: Such a name.

    Example:
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
    """Errors that a damaged archive raises become one that names it."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(":")
        raise ValueError(f"{archive} is damaged, not complete or no archive ({reason}); download it again") from error


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
