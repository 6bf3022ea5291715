"""Write a small PASCAL VOC devkit (VOC2007 and VOC2012) of drawn scenes, the same for the same seed.

frskd make_drawn_voc data/drawn/VOCdevkit
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from frskd_plugin.data.drawn_scenes import make_devkit


def image_size(text: str) -> tuple[int, int]:
    """Read HxW.

    Example:
        >>> image_size("120x160")
        (120, 160)
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 120x160, got {text!r}")
    return int(match[1]), int(match[2])


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd make_drawn_voc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="new folder for VOC2007 and VOC2012")
    parser.add_argument("--train", type=int, default=160, help="training scenes of both years (default: 160)")
    parser.add_argument("--val", type=int, default=24, help="scenes of VOC2007 test (default: 24)")
    parser.add_argument("--size", type=image_size, default=(120, 160), metavar="HxW", help="default: 120x160")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the scenes."""
    args = build_parser().parse_args(argv)

    def say(number: int, total: int) -> None:
        if number % 50 == 0 or number == total:
            print(f"  drew {number} of {total} scenes", flush=True)

    counts = make_devkit(args.out, args.train, args.val, args.size, args.seed, on_scene=say)
    for (year, split), count in counts.items():
        print(f"{year} {split}: {count} scenes")
    print(f"wrote {args.out}; next: python tools/prepare_voc.py {args.out}")
