"""Draw what student and self-teacher look at, block by block (Figures 3 and 5 of the paper), a PNG for each image.

frskd attention_maps work_dirs/frskd_cub200_resnet18/epoch_50.pth bird.jpg dog.jpg
frskd attention_maps work_dirs/frskd_cub200_resnet18/epoch_{10,50,90}.pth bird.jpg -o pictures
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import frskd_plugin  # noqa: F401  registers the components, also for configs without custom_imports
from frskd_plugin.core.atomic_write import save_figure
from frskd_plugin.mmengine.attention_picture import attention_picture, in_order
from frskd_plugin.mmengine.stored_config import add_allow_imports
from frskd_plugin.mmengine.trained_network import open_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = argparse.ArgumentParser(
        prog="frskd attention_maps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="CHECKPOINT|IMAGE",
        help="checkpoints of tools/train.py (.pth), of a classifier or a segmentor, which stand side by side, epochs "
        "ascending; all other files are images, which are prepared as the config does for a test",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("attention_maps"), help="folder for the pictures (default: %(default)s)"
    )
    add_allow_imports(parser)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``checkpoints`` and ``images`` are told apart by their suffix."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.checkpoints = [path for path in args.files if path.suffix == ".pth"]
    args.images = [path for path in args.files if path.suffix != ".pth"]
    if not args.checkpoints:
        parser.error("no checkpoint: give one or more .pth files of tools/train.py, then the images")
    if not args.images:
        parser.error("no image: give one or more image files after the checkpoints")
    return args


def targets_of(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Image -> picture in the folder, named like the image; like its folder too where images share a name.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: the picture would replace an image, or two pictures would be one file.
    """
    for image in images:
        if not image.is_file():
            raise FileNotFoundError(f"image {image} not found; expected an image file, or a checkpoint (.pth)")
    images = list(dict.fromkeys(images))
    stems = Counter(image.stem for image in images)
    targets = {}
    for image in images:
        name = image.stem if stems[image.stem] == 1 else f"{image.resolve().parent.name}_{image.stem}"
        targets[image] = folder / f"{name}.png"
    inputs = {image.resolve() for image in images}
    for image, target in targets.items():
        if target.resolve() in inputs:
            raise ValueError(f"the picture of {image} would replace the image {target}; give another folder with -o")
        if list(targets.values()).count(target) > 1:
            raise ValueError(f"several images would become {target}; draw them in separate calls with a folder each")
    return targets


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and say what was written."""
    args = parse_args(argv)
    targets = targets_of(args.images, args.out)
    networks = in_order([open_checkpoint(path, args.allow_imports) for path in args.checkpoints])
    args.out.mkdir(parents=True, exist_ok=True)
    for image, target in targets.items():
        save_figure(attention_picture(networks, image), target)
        print(f"picture: {target}")
