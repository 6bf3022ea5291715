"""Attention maps for the page: pictures that the run has drawn, or new ones from the checkpoints that it has kept."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from frskd_plugin.mmengine.attention_picture import attention_picture, in_order, labels_of
from frskd_plugin.mmengine.trained_network import TrainedNetwork, open_checkpoint

# of AttentionPictureHook, and of tools/attention_maps.py where it was told to draw into the work folder
FOLDERS = ("attention", "attention_maps")
_EPOCH = re.compile(r"(epoch|iter)_(\d+)")
_WHAT = (
    "the image, and how much each place of it counts in the feature maps of the student and, where there is one, of "
    "its self-teacher"
)


@dataclass(frozen=True)
class Picture:
    """A picture of attention maps.

    Attributes:
        caption: which image, and after which epochs.
        alt: what it shows, for those who do not see it.
        png: the file's bytes.
        size: width and height in pixels.
    """

    caption: str
    alt: str
    png: bytes
    size: tuple[int, int]


def found_pictures(work_dir: Path) -> tuple[list[Picture], list[str]]:
    """The pictures in the work folder, image by image, and those of an image by epoch.

    Returns:
        The pictures, and a remark for each file that is no whole PNG: a run under way may be writing it.
    """
    files = [file for folder in FOLDERS for file in (work_dir / folder).glob("**/*.png")]
    pictures, remarks = [], []
    for file in sorted(files, key=lambda file: (file.stem, file.parts[-2] in FOLDERS, _step(file), str(file))):
        when = _when(file)
        png = file.read_bytes()
        try:
            size = _size(png)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged file
            remarks.append(f"The picture {file} is left out, because it is no whole PNG file ({error}).")
            continue
        caption = f"{file.stem}, {when}" if when else file.stem
        pictures.append(Picture(caption, f"Attention maps, {caption}: {_WHAT}.", png, size))
    return pictures, remarks


def drawn_pictures(work_dir: Path, images: Sequence[Path]) -> list[Picture]:
    """A picture of each image, drawn with all checkpoints that are still in the work folder, epochs ascending.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: there is no checkpoint, or an image or checkpoint cannot be read.
    """
    networks = in_order(networks_of(work_dir))
    after = ", ".join(labels_of(networks))
    pictures = []
    for image in images:
        if not image.is_file():
            raise FileNotFoundError(f"image {image} not found; expected an image file behind --images")
        buffer = io.BytesIO()
        FigureCanvasAgg(attention_picture(networks, image)).print_png(buffer)
        png = buffer.getvalue()
        caption = f"{image.name}: {after}"
        pictures.append(Picture(caption, f"Attention maps, {caption}: {_WHAT}.", png, _size(png)))
    return pictures


def networks_of(work_dir: Path) -> list[TrainedNetwork]:
    """Of all checkpoints, one an epoch: the best one is often one of the last, too.

    Raises:
        ValueError: there is none, or one cannot be read.
    """
    files = sorted(work_dir.glob("*.pth"), key=lambda file: (file.stem.startswith("best_"), file.name))
    networks: dict[int, TrainedNetwork] = {}
    for file in files:
        if _EPOCH.search(file.stem):
            network = open_checkpoint(file)
            networks.setdefault(network.step, network)
    if not networks:
        raise ValueError(
            f"{work_dir} holds no checkpoint (epoch_*.pth, best_*.pth) to draw the attention maps of --images with; "
            "leave --images out, or give a work folder whose checkpoints are still there"
        )
    return list(networks.values())


def _step(file: Path) -> int:
    match = _EPOCH.fullmatch(file.parent.name)
    return int(match[2]) if match else 0


def _when(file: Path) -> str:
    match = _EPOCH.fullmatch(file.parent.name)
    if match:
        return f"{'epoch' if match[1] == 'epoch' else 'iteration'} {match[2]}"
    return "end of the training" if file.parent.name == FOLDERS[0] else ""


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        return image.size
