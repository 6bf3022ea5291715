"""Draw what student and self-teacher look at, block by block (Figures 3 and 5 of the paper), a PNG for each image.

frskd attention_maps work_dirs/frskd_cub200_resnet18/epoch_50.pth bird.jpg dog.jpg
frskd attention_maps work_dirs/frskd_cub200_resnet18/epoch_{10,50,90}.pth bird.jpg -o pictures
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

import frskd_plugin  # noqa: F401  registers the components, also for configs without custom_imports
from frskd_plugin.commands.arguments import command_parser
from frskd_plugin.commands.console import output_held, progress
from frskd_plugin.core.atomic_write import save_figure
from frskd_plugin.data.image_folder import build_transforms, read_rgb, to_uint8
from frskd_plugin.export import load_strictly
from frskd_plugin.mmengine.attention import Panel, as_picture, attention_panels, draw_grid, refine
from frskd_plugin.mmengine.classifier import STUDENT_PREFIX
from frskd_plugin.mmengine.config_tools import check_version, explained_build, is_classifier, without_pretrained
from frskd_plugin.mmengine.export import TEACHER_PREFIX
from frskd_plugin.mmengine.resume import load_checkpoint
from frskd_plugin.mmengine.stored_config import add_allow_imports, stored_config


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all options."""
    parser = command_parser("attention_maps", __doc__)
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


def targets_of(images: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Map each image to its picture, named like the image; like its folder too where images share a name."""
    stems = Counter(image.stem for image in dict.fromkeys(images))
    targets: dict[Path, Path] = {}
    for image in dict.fromkeys(images):
        if not image.is_file():
            raise FileNotFoundError(f"image {image} not found; expected an image file, or a checkpoint (.pth)")
        name = image.stem if stems[image.stem] == 1 else f"{image.resolve().parent.name}_{image.stem}"
        target = folder / f"{name}.png"
        if target.resolve() in {other.resolve() for other in images}:
            raise ValueError(f"the picture of {image} would replace the image {target}; give another folder with -o")
        if target in targets.values():
            raise ValueError(f"several images would become {target}; draw them in separate calls with a folder each")
        targets[image] = target
    return targets


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and say what was written; checkpoints and images are told apart by their suffix."""
    parser = build_parser()
    args = parser.parse_args(argv)
    checkpoints = [path for path in args.files if path.suffix == ".pth"]
    images = [path for path in args.files if path.suffix != ".pth"]
    if not checkpoints:
        parser.error("no checkpoint: give one or more .pth files of tools/train.py, then the images")
    if not images:
        parser.error("no image: give one or more image files after the checkpoints")
    targets = targets_of(images, args.out)
    networks = in_order([TrainedNetwork(path, args.allow_imports) for path in checkpoints])
    args.out.mkdir(parents=True, exist_ok=True)
    for image, target in progress(targets.items(), "drawing", "images", len(targets)):
        save_figure(attention_picture(networks, image), target)
        print(f"picture: {target}")


class ImageMaps(NamedTuple):
    """Image as a network sees it, and its feature maps, level 0 = highest resolution."""

    image: np.ndarray  # RGB [H, W, 3], uint8, as the config prepares it for a test
    padded_size: tuple[int, int]  # that the maps cover; the image lies in the upper left corner
    feats: list[Tensor]  # the student's maps [1, C_i, H_i, W_i]
    refined_feats: list[Tensor] | None  # the self-teacher's maps [1, D_i, H_i, W_i]; None where there is none


class TrainedNetwork:
    """Classifier or segmentor of a checkpoint that tools/train.py wrote, built from the config in it, in eval mode.

    A segmentor's maps are those that its decode head gets. Of a classifier's method without a self-teacher, only the
    student is built. Nothing is downloaded.

    Args:
        path: of the checkpoint.
        allow_imports: trust the config in it, see `stored_config`.

    Attributes:
        run: name of the folder that holds the checkpoint.
        step: number of epochs that it was trained, or of iterations where those are counted.
        label: that number with its unit, such as 'epoch 50'.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: what the config needs (mmsegmentation, for a segmentor) is not installed.
        ValueError: the file is damaged, or no checkpoint of a classifier or segmentor of this package.
    """

    def __init__(self, path: str | Path, allow_imports: bool = False) -> None:
        path = Path(path)
        checkpoint = load_checkpoint(path)
        with output_held():
            self.config = config = stored_config(checkpoint, str(path), allow_imports)
        check_version(config, str(path))
        self.is_classifier = is_classifier(config)
        model = config.get("model") or {}
        if not self.is_classifier and "decode_head" not in model:
            raise ValueError(
                f"{path} is of a model of type {model.get('type')!r}; expected a checkpoint of a TimmClassifier, or of "
                "a segmentor of mmseg (FRSKDEncoderDecoder, EncoderDecoder)"
            )
        self.run = path.resolve().parent.name
        loop = config.get("train_cfg") or {}
        by_iterations = loop.get("type") == "IterBasedTrainLoop" or loop.get("by_epoch") is False
        unit, key = ("iteration", "iter") if by_iterations else ("epoch", "epoch")
        self.step = int(checkpoint["meta"].get(key, 0))
        self.label = f"{unit} {self.step}" if key in checkpoint["meta"] else path.stem

        weights = checkpoint["state_dict"]
        prefix = f"network.method.{TEACHER_PREFIX}" if self.is_classifier else TEACHER_PREFIX
        has_teacher = any(name.startswith(prefix) for name in weights)
        settings = without_pretrained(model)[0]
        if self.is_classifier:
            settings["compile"], settings["mix"] = False, None
            if not has_teacher:
                settings["method"] = dict(name="baseline")  # `update` would keep the other method's settings
                weights = {name: value for name, value in weights.items() if name.startswith(STUDENT_PREFIX)}
        with self._scope(), explained_build(f"in {path}"), output_held():
            built = MODELS.build(settings)
            self.model = (built if self.is_classifier else revert_sync_batchnorm(built)).eval()
            load_strictly(self.model, weights, path)
        owner = self.model.network.method if self.is_classifier else self.model
        self.neck = owner.self_teacher.neck if has_teacher else None

    @torch.no_grad()
    def maps_of(self, path: Path) -> ImageMaps:
        """Run on an image file."""
        loader = self.config.get("test_dataloader") or self.config.get("val_dataloader")
        if not loader:
            raise ValueError("the checkpoint's config has no test_dataloader, whose transforms prepare the images")
        dataset = loader["dataset"]
        while "dataset" in dataset:
            dataset = dataset["dataset"]
        image, inputs, feats = (self._classify if self.is_classifier else self._segment)(path, dataset)
        refined_feats = None if self.neck is None else refine(self.neck, feats)
        return ImageMaps(image, tuple(inputs.shape[-2:]), feats, refined_feats)

    def _classify(self, path: Path, dataset: dict[str, Any]) -> tuple[np.ndarray, Tensor, list[Tensor]]:
        image = to_uint8(build_transforms(dataset.get("transforms"))(read_rgb(path)))
        inputs = self.model.data_preprocessor(dict(inputs=image[None]))["inputs"]
        try:
            feats, _ = self.model.network.student_forward(inputs)
        except (AssertionError, RuntimeError) as error:  # timm's, for images of a size that the network cannot take
            raise ValueError(
                f"image {path}, prepared to {image.shape[1]}x{image.shape[2]} pixels, does not fit the network: "
                f"{str(error).splitlines()[0]}"
            ) from error
        return image.permute(1, 2, 0).numpy(), inputs, feats

    def _segment(self, path: Path, dataset: dict[str, Any]) -> tuple[np.ndarray, Tensor, list[Tensor]]:
        with self._scope(), output_held():
            prepare = Compose([step for step in dataset["pipeline"] if "Annotations" not in step["type"]])
        try:
            data = prepare(dict(img_path=str(path)))
        except FileNotFoundError:
            raise
        except Exception as error:  # mmcv's loader hands on what it cannot decode, and the next step fails
            raise ValueError(
                f"image {path} cannot be decoded, or prepared as the config says ({type(error).__name__}: {error})"
            ) from error
        inputs = self.model.data_preprocessor(pseudo_collate([data]))["inputs"]
        feats = list(self.model.extract_feat(inputs)) if self.neck is None else self.model.distilled_maps(inputs)[0]
        return as_picture(data["inputs"][:3].flip(0)), inputs, feats  # mmcv loads BGR, other bands behind it

    def level_name(self, level: int) -> str:
        """Name a level, counted from 0: blocks count from 1, as in the paper, levels of a neck's pyramid from 0."""
        return f"block {level + 1}" if self.is_classifier else f"level {level}"

    def _scope(self) -> Any:
        """Return a context in which the config's names mean what they did in training."""
        return DefaultScope.overwrite_default_scope(self.config.get("default_scope") or "mmengine")


def attention_picture(networks: Sequence[TrainedNetwork], path: Path) -> Figure:
    """Draw an image, then for each network a column a level: the student's attention above the self-teacher's.

    A network without a self-teacher leaves the lower fields empty; where none has one, the lower row is left out.
    """
    upper: list[Panel | None] = []
    lower: list[Panel | None] = []
    for network, label in zip(networks, labels_of(networks), strict=True):
        maps = network.maps_of(path)
        if not upper:
            upper, lower = [Panel("image", maps.image)], [None]
        for name, row, feats in (("student", upper, maps.feats), ("self-teacher", lower, maps.refined_feats)):
            panels = attention_panels(feats or [], maps.image.shape[:2], maps.padded_size)
            row += [
                Panel(f"{label}\n{network.level_name(level)}, {name}", maps.image, panel)
                for level, panel in enumerate(panels)
            ]
            # a self-teacher may end at a lower level than the student
            row += [None] * (len(maps.feats) - len(panels))
    return draw_grid([upper, lower] if any(lower) else [upper])


def labels_of(networks: Sequence[TrainedNetwork]) -> list[str]:
    """Return the epoch of each; with the name of the run where the networks are of several runs."""
    several = len({network.run for network in networks}) > 1
    return [f"{network.run}, {network.label}" if several else network.label for network in networks]


def in_order(networks: Sequence[TrainedNetwork]) -> list[TrainedNetwork]:
    """Sort the epochs of each run (a shell puts epoch_10 before epoch_2); runs stay in the order in which they come."""
    runs = [network.run for network in networks]
    return sorted(networks, key=lambda network: (runs.index(network.run), network.step))
