"""Write the training lists of VOC2007 + VOC2012 segmentation into a devkit.

The images of the VOC2007 test set that VOC2012 trainval contains are left out, by id and by image hash;
--paper-protocol keeps them, as the paper does. Nothing but the lists is written; run it as often as you like.

    frskd prepare_voc data/VOCdevkit
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from frskd_plugin.data.voc_lists import (
    LIST_NAME,
    PAPER_LIST_NAME,
    SPLITS,
    list_path,
    make_training_lists,
    read_ids,
    write_lists,
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd prepare_voc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("devkit", type=Path, help="folder that holds VOC2007 (trainval and test) and VOC2012")
    parser.add_argument(
        "--paper-protocol", action="store_true", help="keep the VOC2007 test images in the VOC2012 training list"
    )
    parser.add_argument("--out", metavar="NAME", help=f"name of the lists (default: {LIST_NAME}, or {PAPER_LIST_NAME})")
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.out = args.out or (PAPER_LIST_NAME if args.paper_protocol else LIST_NAME)
    if "/" in args.out or args.out in {"train", "val", "trainval", "test"}:
        parser.error(f"--out must be a plain name other than those of the published lists, got {args.out!r}")
    return args


def show_progress(images: Iterable) -> Iterator:
    """Yield the images and say every 500 how far it is."""
    images = list(images)
    for number, image in enumerate(images, start=1):
        yield image
        if number % 500 == 0 or number == len(images):
            print(f"  read {number} of {len(images)} images", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Make and write the lists."""
    args = parse_args(argv)
    lists = make_training_lists(args.devkit, args.paper_protocol, show_progress)
    paths = write_lists(args.devkit, lists.ids, args.out)
    for (year, split), (published, _) in SPLITS.items():
        count = len(read_ids(list_path(args.devkit, year, split)))
        note = "" if count == published else f" (the published devkit has {published})"
        print(f"{year} {split}: {count} images{note}")
    kept = "kept, --paper-protocol" if args.paper_protocol else "left out"
    reasons = ", ".join(f"{n} by {reason}" for reason, n in Counter(c.reason for c in lists.removed).items())
    how = f" ({reasons})" if reasons else ""
    print(f"VOC2012 trainval holds {len(lists.removed)} images of VOC2007 test: {kept}{how}")
    for copy in lists.removed:
        print(f"  {copy.image_id} is VOC2007 test {copy.reference_id}: {copy.reason}")
    print(f"VOC2012 trainval holds {len(lists.twice)} images of VOC2007 trainval: they stay and count twice")
    for path, ids in zip(paths, lists.ids.values(), strict=True):
        print(f"wrote {path}: {len(ids)} images")
