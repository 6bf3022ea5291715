"""Write a small PASCAL VOC devkit (VOC2007 and VOC2012) of drawn scenes, the same for the same seed.

python tools/make_drawn_voc.py data/drawn/VOCdevkit
"""

from __future__ import annotations

import argparse
import re
import sys
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


def main(argv: list[str] | None = None) -> int:
    """Draw the scenes; 1 when the folder cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder for VOC2007 and VOC2012")
    parser.add_argument("--train", type=int, default=160, help="training scenes of both years (default: 160)")
    parser.add_argument("--val", type=int, default=24, help="scenes of VOC2007 test (default: 24)")
    parser.add_argument("--size", type=image_size, default=(120, 160), metavar="HxW", help="default: 120x160")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    def say(number: int, total: int) -> None:
        if number % 50 == 0 or number == total:
            print(f"  drew {number} of {total} scenes", flush=True)

    try:
        counts = make_devkit(args.out, args.train, args.val, args.size, args.seed, on_scene=say)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for (year, split), count in counts.items():
        print(f"{year} {split}: {count} scenes")
    print(f"wrote {args.out}; next: python tools/prepare_voc.py {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
