"""Draw what student and self-teacher look at, block by block (Figures 3 and 5 of the paper), a PNG for each image.

frskd attention_maps work_dirs/frskd_cub200_resnet18/epoch_50.pth bird.jpg dog.jpg
frskd attention_maps work_dirs/frskd_cub200_resnet18/epoch_{10,50,90}.pth bird.jpg -o pictures
"""

from __future__ import annotations

import abc
import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

import frskd_plugin  # noqa: F401  registers the components, also for configs without custom_imports
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


CLASSIFIER_TEACHER_PREFIX = "network.method.self_teacher."


@dataclass(frozen=True)
class ImageMaps:
    """Image as a network sees it, and its feature maps.

    Attributes:
        image: RGB [H, W, 3], uint8, as the config prepares it for a test.
        padded_size: height and width that the maps cover; the image lies in the upper left corner.
        feats: the student's maps [1, C_i, H_i, W_i], level 0 = highest resolution.
        refined_feats: the self-teacher's maps [1, D_i, H_i, W_i]; None where there is no self-teacher.
    """

    image: np.ndarray
    padded_size: tuple[int, int]
    feats: list[Tensor]
    refined_feats: list[Tensor] | None


class TrainedNetwork(abc.ABC):
    """Model with the weights of a checkpoint, in eval mode, that shows its feature maps of an image file.

    Args:
        path: of the checkpoint.
        meta: of the checkpoint.
        config: that it was trained with.
        weights: the model's state_dict.

    Attributes:
        run: name of the folder that holds the checkpoint.
        step: number of epochs that it was trained, or of iterations where those are counted.
        label: that number with its unit, such as 'epoch 50'.

    Raises:
        ValueError: the config cannot be built, or the weights do not fit.
    """

    def __init__(self, path: Path, meta: dict[str, Any], config: Config, weights: dict[str, Tensor]) -> None:
        self.path = path
        self.config = config
        self.run = path.resolve().parent.name
        unit, key = ("iteration", "iter") if _counts_iterations(config) else ("epoch", "epoch")
        self.step = int(meta.get(key, 0))
        self.label = f"{unit} {self.step}" if key in meta else path.stem
        with self.scope(), explained_build(f"in {path}"):
            self.model, self.neck = self.build(weights)
        self.model.eval()

    @abc.abstractmethod
    def build(self, weights: dict[str, Tensor]) -> tuple[nn.Module, nn.Module | None]:
        """Return the model with its weights, and its self-teacher's feature network, if it has one."""

    @abc.abstractmethod
    def maps_of(self, path: Path) -> ImageMaps:
        """Run on an image file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be decoded, or does not fit the network.
        """

    @abc.abstractmethod
    def level_name(self, level: int) -> str:
        """Return the name of a level, counted from 0, in a picture."""

    def scope(self) -> Any:
        """Return a context in which the config's names mean what they did in training."""
        return DefaultScope.overwrite_default_scope(self.config.get("default_scope") or "mmengine")

    def test_dataset(self) -> dict[str, Any]:
        """Return the config of the data set that is tested on, without its wrappers.

        Raises:
            ValueError: the config has none.
        """
        loader = self.config.get("test_dataloader") or self.config.get("val_dataloader")
        if not loader:
            raise ValueError("the checkpoint's config has no test_dataloader, whose transforms prepare the images")
        dataset = loader["dataset"]
        while "dataset" in dataset:
            dataset = dataset["dataset"]
        return dataset

    def refine(self, feats: list[Tensor]) -> list[Tensor] | None:
        """Return the self-teacher's maps; None without one."""
        return None if self.neck is None else refine(self.neck, feats)


class TrainedClassifier(TrainedNetwork):
    """`TimmClassifier`; a method that has no self-teacher is not built, only its student is."""

    def build(self, weights: dict[str, Tensor]) -> tuple[nn.Module, nn.Module | None]:
        """See `TrainedNetwork.build`."""
        settings = without_pretrained(self.config.model)[0]
        settings["compile"], settings["mix"] = False, None
        has_teacher = any(key.startswith(CLASSIFIER_TEACHER_PREFIX) for key in weights)
        if not has_teacher:
            settings["method"] = dict(name="baseline")  # `update` would keep the other method's settings
            weights = {key: value for key, value in weights.items() if key.startswith(STUDENT_PREFIX)}
        model = MODELS.build(settings)
        load_strictly(model, weights, self.path)
        return model, model.network.method.self_teacher.neck if has_teacher else None

    @torch.no_grad()
    def maps_of(self, path: Path) -> ImageMaps:
        """See `TrainedNetwork.maps_of`."""
        transform = build_transforms(self.test_dataset().get("transforms"))
        image = to_uint8(transform(read_rgb(path)))
        inputs = self.model.data_preprocessor(dict(inputs=image[None]))["inputs"]
        try:
            feats, _ = self.model.network.student_forward(inputs)
        except (AssertionError, RuntimeError) as error:  # timm's, for images of a size that the network cannot take
            raise ValueError(
                f"image {path}, prepared to {image.shape[1]}x{image.shape[2]} pixels, does not fit the network: "
                f"{str(error).splitlines()[0]}"
            ) from error
        return ImageMaps(image.permute(1, 2, 0).numpy(), tuple(inputs.shape[-2:]), feats, self.refine(feats))

    def level_name(self, level: int) -> str:
        """Blocks count from 1, as in the paper."""
        return f"block {level + 1}"


class TrainedSegmentor(TrainedNetwork):
    """Encoder-decoder of mmseg, plain or FRSKD; its maps are those that the decode head gets."""

    def build(self, weights: dict[str, Tensor]) -> tuple[nn.Module, nn.Module | None]:
        """See `TrainedNetwork.build`."""
        model = revert_sync_batchnorm(MODELS.build(without_pretrained(self.config.model)[0]))
        load_strictly(model, weights, self.path)
        has_teacher = any(key.startswith(TEACHER_PREFIX) for key in weights)
        return model, model.self_teacher.neck if has_teacher else None

    @torch.no_grad()
    def maps_of(self, path: Path) -> ImageMaps:
        """See `TrainedNetwork.maps_of`."""
        steps = [step for step in self.test_dataset()["pipeline"] if "Annotations" not in step["type"]]
        with self.scope():
            prepare = Compose(steps)
        try:
            data = prepare(dict(img_path=str(path)))
        except FileNotFoundError:
            raise
        except Exception as error:  # mmcv's loader hands on what it cannot decode, and the next step fails
            raise ValueError(
                f"image {path} cannot be decoded, or prepared as the config says ({type(error).__name__}: {error})"
            ) from error
        inputs = self.model.data_preprocessor(pseudo_collate([data]))["inputs"]
        if self.neck is None:
            feats = list(self.model.extract_feat(inputs))
        else:
            feats, _ = self.model.distilled_maps(inputs)
        image = as_picture(data["inputs"][:3].flip(0))  # mmcv loads BGR, other bands behind it
        return ImageMaps(image, tuple(inputs.shape[-2:]), feats, self.refine(feats))

    def level_name(self, level: int) -> str:
        """Levels of a neck's pyramid count from 0."""
        return f"level {level}"


def open_checkpoint(path: str | Path, allow_imports: bool = False) -> TrainedNetwork:
    """Build the network of a checkpoint that tools/train.py wrote from the config in it; nothing is downloaded.

    Args:
        path: of the checkpoint.
        allow_imports: trust the config in it, see `stored_config`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: what the config needs (mmsegmentation, for a segmentor) is not installed.
        ValueError: the file is damaged, or no checkpoint of a classifier or segmentor of this package.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path)
    config, meta = stored_config(checkpoint, str(path), allow_imports), checkpoint["meta"]
    check_version(config, str(path))
    model = config.get("model") or {}
    if is_classifier(config):
        kind: type[TrainedNetwork] = TrainedClassifier
    elif "decode_head" in model:
        kind = TrainedSegmentor
    else:
        raise ValueError(
            f"{path} is of a model of type {model.get('type')!r}; expected a checkpoint of a TimmClassifier, or of a "
            f"segmentor of mmseg (FRSKDEncoderDecoder, EncoderDecoder)"
        )
    return kind(path, meta, config, checkpoint["state_dict"])


def _counts_iterations(config: Config) -> bool:
    train_cfg = config.get("train_cfg") or {}
    return train_cfg.get("type") == "IterBasedTrainLoop" or train_cfg.get("by_epoch") is False


Row = list[Panel | None]


def attention_picture(networks: Sequence[TrainedNetwork], path: Path) -> Figure:
    """Draw an image, then for each network a column a level: the student's attention above the self-teacher's.

    A network without a self-teacher leaves the lower fields empty; where none has one, the lower row is left out.

    Args:
        networks: as they shall stand from left to right.
        path: image file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, or does not fit a network.
    """
    upper: Row = []
    lower: Row = []
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
