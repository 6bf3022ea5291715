"""Put a published image classification set into the layout that the configs read, and check its counts.

frskd prepare_data cub200 downloads/CUB_200_2011.tgz data/cub200
frskd prepare_data mit67 downloads/mit67 data/mit67

SRC is the published archive, or a folder that holds the published files, as they are or unpacked; it is not changed.
DST gets {train, val or test}/<class>/<image> (cifar100: the folder cifar-100-python, or image folders where SRC holds
these). A split appears in DST when it is whole. After an interruption, run the same command again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from frskd_plugin.data.catalog import IMAGE_SETS
from frskd_plugin.data.prepare import prepare_images


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    files = "\n".join(f"  {name:<13} {', '.join(image_set.sources)}" for name, image_set in IMAGE_SETS.items())
    parser = argparse.ArgumentParser(
        prog="frskd prepare_data",
        description=__doc__,
        epilog=f"published files:\n{files}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=list(IMAGE_SETS), help=", ".join(IMAGE_SETS))
    parser.add_argument("src", metavar="SRC", type=Path, help="published archive, or folder of the published files")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder to make; the data_root of the configs")
    parser.add_argument("--link", action="store_true", help="hard links instead of copies of images unpacked in SRC")
    return parser


def show_progress(number: int) -> None:
    """Say every 10000 files how far it is."""
    if number % 10000 == 0:
        print(f"  {number} files", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the set, and say how many images it has."""
    args = build_parser().parse_args(argv)
    parts = prepare_images(args.name, args.src, args.dst, args.link, on_file=show_progress)
    for part in parts:
        images = ", ".join(f"{split} {count} images" for split, count in part.images.items())
        state = "" if part.made else " (was there already)"
        print(f"{part.path}: {images}, {part.num_classes} classes{state}")
    print(f"{args.name} is complete: data_root is {args.dst} (tools/train.py --data-root {args.dst})")
