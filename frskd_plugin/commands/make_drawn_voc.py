"""Write a small PASCAL VOC devkit (VOC2007 and VOC2012) of drawn scenes, the same for the same seed.

frskd make_drawn_voc data/drawn/VOCdevkit

Objects of five VOC classes stand in front of a textured background with clutter. A class has its shape and a typical
colour, from which each object differs; background and clutter have any colour, so that colour alone does not tell what
is an object. Objects cover each other and leave the image; their outlines are 255, as in VOC.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from frskd_plugin.commands.arguments import command_parser, whole_number
from frskd_plugin.commands.console import progress
from frskd_plugin.commands.prepare_voc import SPLITS, image_path, list_path, mask_path

IGNORE = 255
Outline = Sequence[tuple[float, float]]
# VOC class index -> outlines in a box of [0, 1] x [0, 1], y down: polygons, or of two points the ellipse between them.
SHAPES: dict[int, list[Outline]] = {
    4: [  # boat: hull and sail
        [(0.0, 0.7), (1.0, 0.7), (0.8, 1.0), (0.2, 1.0)],
        [(0.45, 0.0), (0.95, 0.62), (0.45, 0.62)],
        [(0.4, 0.0), (0.46, 0.0), (0.46, 0.72), (0.4, 0.72)],
    ],
    5: [  # bottle: neck and body
        [(0.44, 0.0), (0.56, 0.0), (0.56, 0.3), (0.66, 0.42), (0.66, 1.0), (0.34, 1.0), (0.34, 0.42), (0.44, 0.3)]
    ],
    6: [  # bus: box and wheels
        [(0.0, 0.2), (1.0, 0.2), (1.0, 0.85), (0.0, 0.85)],
        [(0.1, 0.72), (0.36, 1.0)],
        [(0.64, 0.72), (0.9, 1.0)],
    ],
    15: [  # person: trunk, legs, arms and head
        [(0.36, 0.24), (0.64, 0.24), (0.62, 0.62), (0.38, 0.62)],
        [(0.38, 0.6), (0.5, 0.6), (0.46, 1.0), (0.32, 1.0)],
        [(0.5, 0.6), (0.62, 0.6), (0.68, 1.0), (0.54, 1.0)],
        [(0.36, 0.24), (0.64, 0.24), (0.86, 0.5), (0.8, 0.56), (0.5, 0.4), (0.2, 0.56), (0.14, 0.5)],
        [(0.38, 0.0), (0.62, 0.24)],
    ],
    18: [  # sofa: back, seat and arms
        [(0.1, 0.2), (0.9, 0.2), (0.9, 0.9), (0.1, 0.9)],
        [(0.0, 0.45), (0.18, 0.45), (0.18, 1.0), (0.0, 1.0)],
        [(0.82, 0.45), (1.0, 0.45), (1.0, 1.0), (0.82, 1.0)],
    ],
}
CLASS_INDICES = tuple(SHAPES)
COLOURS = {4: (200, 60, 60), 5: (50, 160, 80), 6: (225, 190, 50), 15: (225, 150, 130), 18: (90, 80, 190)}


def voc_palette() -> list[int]:
    """Return VOC's colour table as 768 numbers: the bits of the index, spread over red, green and blue.

    >>> voc_palette()[:9]
    [0, 0, 0, 128, 0, 0, 0, 128, 0]
    """
    index, channel = np.arange(256)[:, None], np.arange(3)
    table = sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
    return np.ravel(table).tolist()


def shape_mask(
    shape: list[Outline], box: tuple[float, float, float, float], size: tuple[int, int], flip: bool = False
) -> np.ndarray:
    """Draw the pixels [H, W] of a shape that fills ``box`` (left, top, width, height in pixels)."""
    left, top, box_width, box_height = box
    canvas = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(canvas)
    for outline in shape:
        points = [(left + (1 - x if flip else x) * box_width, top + y * box_height) for x, y in outline]
        if len(points) == 2:
            (ax, ay), (bx, by) = points
            draw.ellipse((min(ax, bx), ay, max(ax, bx), by), fill=1)
        else:
            draw.polygon(points, fill=1)
    return np.asarray(canvas)


def texture(rng: np.random.Generator, size: tuple[int, int], typical: tuple[int, ...] | None = None) -> np.ndarray:
    """Draw a colour (any, or near a typical one) with a gradient of light and stripes, [H, W, 3] in 0..255."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(2, 14), rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    stripes = np.sin(2 * np.pi * frequency * along + phase) * rng.uniform(0, 30)
    light = (x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * 60
    colour = rng.uniform(40, 215, size=3)
    if typical is not None:
        colour = 0.3 * colour + 0.7 * np.array(typical)
    return colour + (stripes + light)[..., None]


def clutter(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw the pixels [H, W] of a random triangle or ellipse that belongs to the background."""
    height, width = size
    left, top = rng.uniform(-0.1, 0.9) * width, rng.uniform(-0.1, 0.9) * height
    box = (left, top, rng.uniform(0.1, 0.4) * width, rng.uniform(0.1, 0.4) * height)
    outline = [(0.0, 0.0), (1.0, 1.0)] if rng.random() < 0.5 else [(x, y) for x, y in rng.random((3, 2))]
    return shape_mask([outline], box, size)


def draw_scene(seed: int, index: int, size: tuple[int, int] = (120, 160)) -> tuple[np.ndarray, np.ndarray]:
    """Draw scene ``index`` of the set ``seed``: image [H, W, 3] and labels [H, W], both uint8.

    Labels are 0 (background), one of `CLASS_INDICES`, or 255 on the outlines.
    """
    rng = np.random.default_rng([seed, index])
    height, width = size
    image = texture(rng, size)
    instances: np.ndarray = np.zeros(size, dtype=np.int64)  # 0 = background, k = the k-th object
    labels: np.ndarray = np.zeros(size, dtype=np.uint8)
    for _ in range(rng.integers(2, 6)):
        mask = clutter(rng, size)
        image[mask] = texture(rng, size)[mask]
    for number in range(1, rng.integers(2, 5) + 1):
        class_index = int(rng.choice(CLASS_INDICES))
        side = rng.uniform(0.35, 0.85) * min(size)
        box_width = side * rng.uniform(0.8, 1.3)
        left, top = rng.uniform(-0.15, 1.15) * width - box_width / 2, rng.uniform(0.0, 1.0) * height - side / 2
        mask = shape_mask(SHAPES[class_index], (left, top, box_width, side), size, flip=bool(rng.random() < 0.5))
        image[mask] = texture(rng, size, COLOURS[class_index])[mask]
        labels[mask], instances[mask] = class_index, number
    image = image * rng.uniform(0.7, 1.2) + rng.normal(0, 8, size=(*size, 3))
    labels[_outlines(instances)] = IGNORE
    return np.clip(image, 0, 255).astype(np.uint8), labels


def _outlines(instances: np.ndarray) -> np.ndarray:
    """Mark the pixels [H, W] on either side of a change of instance: two pixels wide, as VOC's borders are a few."""
    border = np.zeros(instances.shape, dtype=bool)
    rows, columns = instances[1:] != instances[:-1], instances[:, 1:] != instances[:, :-1]
    border[1:] |= rows
    border[:-1] |= rows
    border[:, 1:] |= columns
    border[:, :-1] |= columns
    return border


def make_devkit(
    devkit: Path, train: int = 160, val: int = 24, size: tuple[int, int] = (120, 160), seed: int = 0
) -> dict[tuple[str, str], int]:
    """Write VOC2007 (trainval, test) and VOC2012 (trainval) with ``train`` + ``val`` scenes, and count the lists.

    Half of the training scenes go to either year; VOC2007 test has the ``val`` scenes. As in the real devkit, VOC2012
    trainval also contains images of VOC2007 test: every fourth, in turn renamed by year, under a strange id, and
    encoded anew, so that `tools/prepare_voc.py` has something to find.
    """
    if train < 4 or val < 1 or min(size) < 32:
        raise ValueError(f"expected train >= 4, val >= 1 and size >= 32x32, got train={train}, val={val}, size={size}")
    if devkit.exists() and any(devkit.iterdir()):
        raise FileExistsError(f"{devkit} is not empty; name a new folder or remove it")
    for year in ("VOC2007", "VOC2012"):
        for folder in ("Annotations", "ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
            (devkit / year / folder).mkdir(parents=True, exist_ok=True)

    ids: dict[tuple[str, str], list[str]] = {key: [] for key in SPLITS}
    for number in progress(range(train + val), "drawing", "scenes"):
        if number >= train:
            key, image_id = ("VOC2007", "test"), f"{number + 1:06d}"
        elif number < train // 2:
            key, image_id = ("VOC2007", "trainval"), f"{number + 1:06d}"
        else:
            key, image_id = ("VOC2012", "trainval"), f"2008_{number + 1:06d}"
        image, labels = draw_scene(seed, number, size)
        Image.fromarray(image).save(image_path(devkit, key[0], image_id), quality=92)
        mask = Image.fromarray(labels)
        mask.putpalette(voc_palette())  # turns mode L into P
        mask.save(mask_path(devkit, key[0], image_id))
        ids[key].append(image_id)

    copies = [_copy_into_2012(devkit, i, n) for n, i in enumerate(ids["VOC2007", "test"][::4])]
    ids["VOC2012", "trainval"] = sorted([*ids["VOC2012", "trainval"], *copies])
    for (year, split), split_ids in ids.items():
        list_path(devkit, year, split).write_text("".join(f"{i}\n" for i in split_ids))
    return {key: len(split_ids) for key, split_ids in ids.items()}


def _copy_into_2012(devkit: Path, test_id: str, number: int) -> str:
    """Put an image of VOC2007 test into VOC2012: by its id (0, 3, ..), as the same file (1, 4, ..), or encoded anew."""
    new_id = f"2007_{test_id}" if number % 3 == 0 else f"2009_{test_id}"
    for path in (image_path, mask_path):
        shutil.copyfile(path(devkit, "VOC2007", test_id), path(devkit, "VOC2012", new_id))
    if number % 3 == 2:
        with Image.open(image_path(devkit, "VOC2007", test_id)) as image:
            image.save(image_path(devkit, "VOC2012", new_id), quality=80)
    return new_id


def image_size(text: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH."""
    if (match := re.fullmatch(r"(\d+)x(\d+)", text)) is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH such as 120x160, got {text!r}")
    return int(match[1]), int(match[2])


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = command_parser("make_drawn_voc", __doc__)
    parser.add_argument("out", type=Path, help="new folder for VOC2007 and VOC2012")
    parser.add_argument("--train", type=int, default=160, help="training scenes of both years (default: 160)")
    parser.add_argument("--val", type=int, default=24, help="scenes of VOC2007 test (default: 24)")
    parser.add_argument("--size", type=image_size, default=(120, 160), metavar="HxW", help="default: 120x160")
    parser.add_argument("--seed", type=whole_number, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the scenes."""
    args = build_parser().parse_args(argv)
    counts = make_devkit(args.out, args.train, args.val, args.size, args.seed)
    for (year, split), count in counts.items():
        print(f"{year} {split}: {count} scenes")
    print(f"wrote {args.out}; next: python tools/prepare_voc.py {args.out}")
