"""The files of a published data set, be they in archives or unpacked, read one after the other.

Nothing is ever unpacked as the archive says: a reader sees names and contents, and decides itself what goes where.
"""

from __future__ import annotations

import fnmatch
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
from typing import IO, Any

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
