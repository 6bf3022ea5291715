"""Write the training lists of VOC2007 + VOC2012 segmentation into a devkit.

The images of the VOC2007 test set that VOC2012 trainval contains are left out, by id and by image hash;
--paper-protocol keeps them, as the paper does. Nothing but the lists is written; run it as often as you like.

    frskd prepare_voc data/VOCdevkit
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from frskd_plugin.commands.arguments import command_parser
from frskd_plugin.commands.console import progress
from frskd_plugin.core.atomic_write import atomic_write
from frskd_plugin.data.image_folder import read_rgb

LIST_NAME = "frskd_train"
PAPER_LIST_NAME = "frskd_train_paper_protocol"

# (year, split): images of the published devkit, and the archive they come in.
SPLITS = {
    ("VOC2007", "trainval"): (422, "VOCtrainval_06-Nov-2007.tar"),
    ("VOC2007", "test"): (210, "VOCtest_06-Nov-2007.tar"),
    ("VOC2012", "trainval"): (2913, "VOCtrainval_11-May-2012.tar"),
}

# Two pictures are the same one, encoded anew, when their 8x8 thumbnails differ (0..255) by at most 3 on average and 16
# anywhere, and by little against their contrast: pictures that are almost plain all look alike. JPEG at quality 50
# stays below 1 and 6 on photographs; different photographs are 20 and more apart.
_THUMBNAIL_SIZE = 8
_SAME_MEAN, _SAME_MAX, _SAME_SHARE = 3.0, 16.0, 0.1


class Fingerprint(NamedTuple):
    """Marks of an image: a hash of its pixels, and a thumbnail."""

    pixels: str
    thumbnail: np.ndarray


class Copy(NamedTuple):
    """A candidate that is an image of the reference list, and how that was seen."""

    image_id: str
    reference_id: str
    reason: str


class TrainingLists(NamedTuple):
    """Ids to train on by year, what VOC2012 has of VOC2007 test, and what it has of VOC2007 trainval."""

    ids: dict[str, list[str]]
    removed: list[Copy]
    twice: list[Copy]


def list_path(devkit: Path, year: str, name: str) -> Path:
    """Return the list ``name`` of segmentation images of one year."""
    return devkit / year / "ImageSets" / "Segmentation" / f"{name}.txt"


def image_path(devkit: Path, year: str, image_id: str) -> Path:
    """Return the photograph of an id."""
    return devkit / year / "JPEGImages" / f"{image_id}.jpg"


def mask_path(devkit: Path, year: str, image_id: str) -> Path:
    """Return the labels of an id: one index a pixel, 255 on the outlines."""
    return devkit / year / "SegmentationClass" / f"{image_id}.png"


def read_ids(path: Path) -> list[str]:
    """Read the ids of a list, in its order; empty lines are skipped."""
    return [line.split()[0] for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def read_splits(devkit: Path) -> dict[tuple[str, str], list[str]]:
    """Read the three published lists, and check that each image and each mask is there."""
    if missing := [key for key in SPLITS if not list_path(devkit, *key).is_file()]:
        lines = [f"  {list_path(devkit, *key)}  (from {SPLITS[key][1]})" for key in missing]
        raise FileNotFoundError(
            "These lists are missing:\n" + "\n".join(lines) + "\nDEVKIT must be the folder that holds VOC2007 and "
            "VOC2012, each with ImageSets/Segmentation, JPEGImages and SegmentationClass"
        )
    splits = {key: read_ids(list_path(devkit, *key)) for key in SPLITS}
    for (year, split), ids in splits.items():
        archive = SPLITS[year, split][1]
        if not ids:
            raise ValueError(f"{list_path(devkit, year, split)} holds no id; unpack {archive} again")
        files = [path(devkit, year, i) for path in (image_path, mask_path) for i in ids]
        if absent := [str(file) for file in files if not file.is_file()]:
            lines = [*absent[:5], *([f"... and {len(absent) - 5} more"] if absent[5:] else [])]
            raise FileNotFoundError(
                f"{len(absent)} of {len(files)} files of {year} {split} are missing (from {archive}):\n  "
                + "\n  ".join(lines)
            )
    return splits


def fingerprint(path: Path) -> Fingerprint:
    """Hash the decoded pixels, and shrink them to a thumbnail."""
    image = read_rgb(path)
    thumbnail = image.resize((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BOX)
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    return Fingerprint(pixels, np.asarray(thumbnail, dtype=np.float32))


def find_copies(candidates: dict[str, Fingerprint], references: dict[str, Fingerprint]) -> list[Copy]:
    """Find the candidates (ids of VOC2012) that are an image of the references (ids of VOC2007), in their order."""
    by_pixels = {print_.pixels: i for i, print_ in references.items()}
    reference_ids, thumbnails = list(references), np.stack([print_.thumbnail for print_ in references.values()])
    copies = []
    for image_id, candidate in candidates.items():
        difference = np.abs(thumbnails - candidate.thumbnail)
        mean = difference.mean(axis=(1, 2, 3))
        nearest = int(mean.argmin())
        allowed = min(_SAME_MEAN, _SAME_SHARE * float(candidate.thumbnail.std()))
        if (old_id := image_id.removeprefix("2007_")) in references:
            copies.append(Copy(image_id, old_id, "same id"))
        elif candidate.pixels in by_pixels:
            copies.append(Copy(image_id, by_pixels[candidate.pixels], "same pixels"))
        elif mean[nearest] < allowed and difference[nearest].max() <= _SAME_MAX:
            copies.append(Copy(image_id, reference_ids[nearest], "same picture, encoded anew"))
    return copies


def make_training_lists(devkit: Path, paper_protocol: bool = False) -> TrainingLists:
    """Choose the ids of VOC2007 and VOC2012 trainval, without the images of VOC2007 test unless ``paper_protocol``.

    Images of VOC2012 that are in VOC2007 *trainval* stay, as in the paper's combined set, and count twice.
    """
    splits = read_splits(devkit)
    wanted = [(key, image_id) for key, ids in splits.items() for image_id in ids]
    prints: dict[tuple[str, str], dict[str, Fingerprint]] = {key: {} for key in splits}
    for key, image_id in progress(wanted, "reading", "images", len(wanted)):
        prints[key][image_id] = fingerprint(image_path(devkit, key[0], image_id))

    copies = find_copies(prints["VOC2012", "trainval"], prints["VOC2007", "test"])
    twice = find_copies(prints["VOC2012", "trainval"], prints["VOC2007", "trainval"])
    left_out = set() if paper_protocol else {copy.image_id for copy in copies}
    ids = {
        "VOC2007": splits["VOC2007", "trainval"],
        "VOC2012": [i for i in splits["VOC2012", "trainval"] if i not in left_out],
    }
    if not ids["VOC2012"]:
        raise ValueError(f"every image of {devkit / 'VOC2012'} is one of VOC2007 test; nothing is left to train on")
    return TrainingLists(ids, copies, twice)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = command_parser("prepare_voc", __doc__)
    parser.add_argument("devkit", type=Path, help="folder that holds VOC2007 (trainval and test) and VOC2012")
    parser.add_argument(
        "--paper-protocol", action="store_true", help="keep the VOC2007 test images in the VOC2012 training list"
    )
    parser.add_argument("--out", metavar="NAME", help=f"name of the lists (default: {LIST_NAME}, or {PAPER_LIST_NAME})")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make and write the lists."""
    parser = build_parser()
    args = parser.parse_args(argv)
    name = args.out or (PAPER_LIST_NAME if args.paper_protocol else LIST_NAME)
    if "/" in name or name in {"train", "val", "trainval", "test"}:
        parser.error(f"--out must be a plain name other than those of the published lists, got {name!r}")
    lists = make_training_lists(args.devkit, args.paper_protocol)
    for (year, split), (published, _) in SPLITS.items():
        count = len(read_ids(list_path(args.devkit, year, split)))
        print(
            f"{year} {split}: {count} images{'' if count == published else f' (the published devkit has {published})'}"
        )
    kept = "kept, --paper-protocol" if args.paper_protocol else "left out"
    print(f"VOC2012 trainval holds {len(lists.removed)} images of VOC2007 test: {kept}")
    for copy in lists.removed:
        print(f"  {copy.image_id} is VOC2007 test {copy.reference_id}: {copy.reason}")
    print(f"VOC2012 trainval holds {len(lists.twice)} images of VOC2007 trainval: they stay and count twice")
    for year, ids in lists.ids.items():
        path = list_path(args.devkit, year, name)
        atomic_write(path, "".join(f"{i}\n" for i in ids).encode())
        print(f"wrote {path}: {len(ids)} images")
