"""Put a published image classification set into the layout that the configs read, and check its counts.

frskd prepare_data cub200 downloads/CUB_200_2011.tgz data/cub200
frskd prepare_data mit67 downloads/mit67 data/mit67

SRC is the published archive, or a folder that holds the published files, as they are or unpacked; it is not changed.
DST gets {train, val or test}/<class>/<image> (cifar100: the folder cifar-100-python, or image folders where SRC holds
these). A split appears in DST when it is whole. After an interruption, run the same command again.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from frskd_plugin.commands.arguments import command_parser
from frskd_plugin.commands.console import progress
from frskd_plugin.commands.published_archives import LAYOUTS, Places, Source, place_of
from frskd_plugin.data.cifar100 import ARCHIVE_FOLDER, load_cifar100
from frskd_plugin.data.image_folder import IMAGE_SETS, ImageSet

# What a set may unpack to. Photographs of these sets have 15 MB at most and 0.4 in the mean; CIFAR's arrays have 155.
IMAGE_LIMIT, ARRAYS_LIMIT, MEAN_LIMIT = 64 << 20, 512 << 20, 1 << 20
BLOCK = 4096  # that a file takes at least, be it empty


class PreparedPart(NamedTuple):
    """A folder of the prepared set: its images by split, and whether this run made it."""

    path: Path
    images: dict[str, int]
    made: bool


def prepare_images(name: str, src: str | Path, dst: str | Path, link: bool = False) -> list[PreparedPart]:
    """Put a published data set into the layout that the data sets of this package read.

    A part (a split, or CIFAR-100's python archive) is made in a hidden folder beside its place and renamed once its
    counts are right. Parts that are there and right are left alone, so a run that was interrupted is simply repeated.

    Args:
        name: of the set in `IMAGE_SETS`.
        src: its archive, or a folder that holds its archives or what they unpack to; nothing in it is changed.
        dst: the folder to make.
        link: hard links instead of copies of files that lie unpacked in ``src``.

    Raises:
        FileNotFoundError: Something of the published set is missing.
        ValueError: Counts are wrong, an archive is damaged or unsafe, or ``dst`` lies in ``src``.
    """
    if name not in LAYOUTS:
        raise ValueError(f"expected a data set out of {', '.join(LAYOUTS)}, got {name!r}")
    image_set, src, dst = IMAGE_SETS[name], Path(src), Path(dst)
    source = Source(src, image_set.sources)
    if src.is_dir() and dst.resolve().is_relative_to(src.resolve()):
        raise ValueError(f"DST {dst} lies in SRC {src}, in which nothing is changed; name a folder outside of it")
    if dst.exists() and not dst.is_dir():
        raise ValueError(f"DST {dst} is a file; name a folder, which may be a new one")
    try:
        places = LAYOUTS[name](source)
    except LookupError as error:  # a list names what another one lacks
        raise ValueError(f"the lists in {src} do not fit together ({error}); download them again") from error
    in_archive = any(path.parts[0] == ARCHIVE_FOLDER for path in places.values())
    parts = [ARCHIVE_FOLDER] if in_archive else list(image_set.images)

    counts = {part: _existing(dst / part, image_set) for part in parts if (dst / part).exists()}
    partial = {part: dst / f".{part}.partial" for part in parts if part not in counts}
    try:
        for folder in partial.values():  # what a killed run left
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        if partial:
            _copy(source, places, partial, link, image_set)
        counts |= {part: check_counts(folder, part, image_set) for part, folder in partial.items()}
        for part, folder in partial.items():
            os.replace(folder, dst / part)
    finally:
        for folder in partial.values():
            shutil.rmtree(folder, ignore_errors=True)
    return [PreparedPart(dst / part, counts[part], made=part in partial) for part in parts]


def _copy(source: Source, places: Places, partial: dict[str, Path], link: bool, image_set: ImageSet) -> None:
    """Write the files that belong to the parts into their hidden folders, in all no more than such a set has."""
    total = sum(image_set.images.values())
    left = total * MEAN_LIMIT + ARRAYS_LIMIT
    placed = ((member, place_of(member.name, places)) for member in source.members())
    wanted = ((member, place) for member, place in placed if place is not None and place.parts[0] in partial)
    for member, place in progress(wanted, "copying", "files", None if ARCHIVE_FOLDER in partial else total):
        target = partial[place.parts[0]].joinpath(*place.parts[1:])
        if target.exists():
            raise ValueError(
                f"{source.path} holds more than one file for {place}, {member.name} is the second; let SRC hold the "
                "published set once, without copies of it"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        if link and member.path is not None:
            try:
                os.link(os.path.realpath(member.path), target)
            except OSError as error:
                raise ValueError(
                    f"--link: {member.path} cannot be linked as {target} ({error.strerror}); SRC and DST must lie on "
                    "one file system that has hard links, or leave --link out"
                ) from error
            continue
        largest = ARRAYS_LIMIT if place.parts[0] == ARCHIVE_FOLDER else IMAGE_LIMIT
        with member.opened(min(largest, left)) as file, open(target, "xb") as copy:
            shutil.copyfileobj(file, copy)
        left -= max(member.size, BLOCK)


def _existing(folder: Path, image_set: ImageSet) -> dict[str, int]:
    try:
        return check_counts(folder, folder.name, image_set)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{folder} exists already, but {error}. Or name another DST, or move that folder away"
        ) from error


def check_counts(folder: Path, part: str, image_set: ImageSet) -> dict[str, int]:
    """Count the images of each split in a part of the set."""
    found = {}
    if part == ARCHIVE_FOLDER:
        for split in image_set.images:
            arrays = load_cifar100(folder, split)
            found[split] = Counter(arrays.classes[label] for label in arrays.targets.tolist())
    else:
        images = (path for path in folder.glob("*/**/*") if path.suffix.lower() in IMG_EXTENSIONS)
        found[part] = Counter(path.relative_to(folder).parts[0] for path in images)
    for split, per_class in found.items():
        expected, each = image_set.images[split], image_set.per_class.get(split)
        wrong = [f"{name} {count}" for name, count in per_class.items() if each is not None and count != each]
        if per_class.total() != expected or len(per_class) != image_set.num_classes or wrong:
            some = f"{', '.join(wrong[:5])}{', ...' if wrong[5:] else ''}"
            raise ValueError(
                f"{split} is not the whole set: expected {expected} images of {image_set.num_classes} classes, found "
                f"{per_class.total()} of {len(per_class)}{f' ({each} of each class expected; {some})' if wrong else ''}"
                f". Get {', '.join(image_set.sources)} again from {image_set.url}, unpack anew what was unpacked, and "
                "run this again"
            )
    return {split: per_class.total() for split, per_class in found.items()}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    files = "\n".join(f"  {name:<13} {', '.join(image_set.sources)}" for name, image_set in IMAGE_SETS.items())
    parser = command_parser("prepare_data", __doc__, f"published files:\n{files}")
    parser.add_argument("name", metavar="NAME", choices=list(IMAGE_SETS), help=", ".join(IMAGE_SETS))
    parser.add_argument("src", metavar="SRC", type=Path, help="published archive, or folder of the published files")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make; the data_root of the configs")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies of images unpacked in SRC")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the set, and say how many images it has."""
    args = build_parser().parse_args(argv)
    for part in prepare_images(args.name, args.src, args.dst, args.link):
        images = ", ".join(f"{split} {count} images" for split, count in part.images.items())
        state = "" if part.made else " (was there already)"
        print(f"{part.path}: {images}, {IMAGE_SETS[args.name].num_classes} classes{state}")
    print(f"{args.name} is complete: data_root is {args.dst} (tools/train.py --data-root {args.dst})")
