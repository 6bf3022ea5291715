"""Pictures of attention maps (the paper's Figures 3 and 5), and hooks that draw them in the course of a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.dist import master_only
from mmengine.hooks import Hook
from torch import Tensor, nn

from frskd_plugin.core.atomic_write import save_figure
from frskd_plugin.core.feature_losses import attention_map
from frskd_plugin.mmengine.hooks import unwrap_model

# A map that varies by less than this part of its maximum is flat: stretched, it would show rounding errors.
MIN_SPREAD = 1e-4


def attention_panels(
    feats: Sequence[Tensor], size: tuple[int, int], padded_size: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """Return the attention map [H, W] of each level: channel mean of the squares, resized and stretched to 0..1.

    Args:
        feats: maps [1, C_i, H_i, W_i] of one image.
        size: height and width of the image.
        padded_size: those of what the network saw, where the image was padded below and on the right.

    >>> feat = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]])  # means of squares: 1 and 2
    >>> attention_panels([feat], (1, 4))[0].round(2).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    panels = []
    for feat in feats:
        attention = attention_map(feat).view(1, 1, *feat.shape[-2:])  # its unit norm does not matter here
        attention = F.interpolate(attention, padded_size or size, mode="bilinear", align_corners=False)
        attention = attention[0, 0, : size[0], : size[1]]
        low, high = attention.min(), attention.max()
        flat = high - low <= MIN_SPREAD * high
        panels.append((attention * 0 if flat else (attention - low) / (high - low)).cpu().numpy())
    return panels


def refine(neck: nn.Module, feats: Sequence[Tensor]) -> list[Tensor]:
    """Return the self-teacher's maps, all of them after their ReLU, as the student's are."""
    preactivation = getattr(neck, "preactivation", False)
    return [F.relu(feat) if preactivation else feat for feat in neck(feats)]


def as_picture(image: Tensor) -> np.ndarray:
    """Return the first three bands of an image [C, H, W] in 0..255 as RGB, uint8 [H, W, 3]; of fewer, one in grey."""
    shown = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return shown.float().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


class Panel(NamedTuple):
    """Field of a picture: an image [H, W, 3] in 0..255, and a map [H, W] in 0..1 laid over it."""

    title: str
    image: np.ndarray
    attention: np.ndarray | None = None


def draw_grid(rows: Sequence[Sequence[Panel | None]]) -> Figure:
    """Draw panels in rows, in fields of the first panel's shape; None leaves one empty, and so does a shorter row."""
    columns = max(map(len, rows))
    panels = [panel for row in rows for panel in row if panel is not None]
    height, width = panels[0].image.shape[:2]
    row_height = 1 + 0.15 * max(len(panel.title.splitlines()) for panel in panels)
    figure = Figure(figsize=(2 * columns * width / height, 2 * row_height * len(rows)), layout="tight")
    axes = figure.subplots(len(rows), columns, squeeze=False, subplot_kw=dict(xticks=[], yticks=[]))
    for axis in axes.flat:
        axis.axis("off")
    for row, row_axes in zip(rows, axes, strict=True):
        for panel, axis in zip(row, row_axes, strict=False):
            if panel is None:
                continue
            axis.set_title(panel.title, fontsize=7)
            axis.imshow(panel.image)
            if panel.attention is not None:
                axis.imshow(panel.attention, cmap="jet", alpha=0.55, vmin=0, vmax=1)
    return figure


class AttentionHook(Hook):
    """Draw images of the validation set after the training and, if asked for, in its course.

    The pictures go to ``WORK_DIR/attention/NAME.png``, those of an epoch to ``WORK_DIR/attention/epoch_N/NAME.png``,
    and to the visualizer's backends. A subclass has the `picture`. What is trained stays the same.

    Args:
        num_images: of the validation set, from its start.
        interval: epochs (with ``by_epoch=False`` iterations) between pictures; 0 draws after the training only.
        by_epoch: what ``interval`` counts.
    """

    def __init__(self, num_images: int = 2, interval: int = 0, by_epoch: bool = True) -> None:
        for name, value in (("num_images", num_images), ("interval", interval)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{type(self).__name__}: {name} must be an integer of 0 or more, got {value!r}")
        self.num_images = num_images
        self.interval = interval
        self.by_epoch = by_epoch

    def picture(self, model: Any, dataset: Any, index: int) -> tuple[str, Figure]:
        """Return a name for files and the picture of a sample; ``model`` is in eval mode."""
        raise NotImplementedError

    def after_train_epoch(self, runner: Any) -> None:
        if self.by_epoch and self.every_n_epochs(runner, self.interval) and not self.is_last_train_epoch(runner):
            self._draw(runner, f"epoch_{runner.epoch + 1}", runner.epoch + 1)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        due = not self.by_epoch and self.every_n_train_iters(runner, self.interval)
        if due and not self.is_last_train_iter(runner):
            self._draw(runner, f"iter_{runner.iter + 1}", runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        self._draw(runner, "", runner.epoch if self.by_epoch else runner.iter)

    @master_only
    def _draw(self, runner: Any, folder: str, step: int) -> None:
        if runner.val_loop is None:
            runner.logger.info(f"{type(self).__name__}: there is no validation set to take images from.")
            return
        dataset = runner.val_dataloader.dataset
        model = unwrap_model(runner.model)
        training = model.training
        model.eval()
        for index in range(min(self.num_images, len(dataset))):
            name, figure = self.picture(model, dataset, index)
            canvas = FigureCanvasAgg(figure)
            path = Path(runner.work_dir) / "attention" / folder / f"{name}.png"
            save_figure(figure, path)
            runner.visualizer.add_image(f"attention_{name}", np.array(canvas.buffer_rgba())[..., :3], step)
            runner.logger.info(f"Picture of the attention maps: {path}")
        model.train(training)


class ClassifierAttentionPictureHook(AttentionHook):
    """Draw an image, the class that each network of a `TimmClassifier` predicts, and its attention maps, by block."""

    def picture(self, model: Any, dataset: Any, index: int) -> tuple[str, Figure]:
        sample = dataset[index]
        classes = getattr(dataset, "metainfo", {}).get("classes", ())
        return f"image_{index}", picture_of(model, sample["inputs"], int(sample["targets"]), classes)


@torch.no_grad()
def picture_of(model: Any, image: Tensor, target: int, classes: Sequence[str] = ()) -> Figure:
    """Draw the picture of one image, uint8 [C, H, W] with any number of bands, by a `TimmClassifier` in eval mode."""
    inputs = model.data_preprocessor(dict(inputs=image[None], targets=torch.tensor([target])))["inputs"]
    feats, logits = model.network.student_forward(inputs)
    pixels = as_picture(image)
    networks = {"student": (logits, feats)}
    method = model.network.method
    if hasattr(method, "self_teacher"):
        networks["self-teacher"] = method.teacher_logits(feats), refine(method.self_teacher.neck, feats)
    rows = []
    for name, (scores, maps) in networks.items():
        title = f"{_name(target, classes)}\n{name}: {_name(int(scores.argmax()), classes)}"
        panels = enumerate(attention_panels(maps, pixels.shape[:2]), start=1)
        rows.append(
            [Panel(title, pixels), *(Panel(f"{name}, block {level}", pixels, panel) for level, panel in panels)]
        )
    return draw_grid(rows)


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else f"class {label}"
