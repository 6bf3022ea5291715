"""A picture of what student and self-teacher look at, drawn when the training ends (Figures 3 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.dataset import pseudo_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmseg.models.utils import resize
from torch import Tensor

from frskd_plugin.mmengine.attention_maps import Panel, attention_panels, draw_grid
from frskd_plugin.mmengine.self_teacher_validation_hook import unwrap_model


def draw_picture(
    image: np.ndarray, labels: dict[str, np.ndarray], attentions: dict[str, list[np.ndarray]], palette: Sequence[Any]
) -> Figure:
    """Image and label maps in the first row, then a row of attention maps over the image for each network.

    Args:
        image: RGB, [H, W, 3], 0..255.
        labels: title -> class indices [H, W]; 255 is drawn black.
        attentions: title -> a map [H, W] in 0..1 a level.
        palette: RGB colour of each class, 0..255.
    """
    colours: np.ndarray = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = np.asarray(palette, np.uint8)
    rows = [[Panel("image", image), *(Panel(title, colours[label]) for title, label in labels.items())]]
    for network, panels in attentions.items():
        rows.append([Panel(f"{network}, level {level}", image, panel) for level, panel in enumerate(panels)])
    return draw_grid(rows)


class AttentionPictureHook(Hook):
    """Writes ``WORK_DIR/attention/*.png`` after the training: image, truth, predictions, and attention maps per level.

    A plain segmentor gets the same picture without the self-teacher's row.

    Args:
        num_images: how many images of the validation set, from its start.
    """

    def __init__(self, num_images: int = 2) -> None:
        self.num_images = num_images

    @master_only
    def after_train(self, runner: Any) -> None:
        """Draw with the weights at the end of the training."""
        if runner.val_loop is None:
            runner.logger.info(
                "AttentionPictureHook: there is no validation set to take images from, nothing is drawn."
            )
            return
        dataset = runner.val_dataloader.dataset
        folder = Path(runner.work_dir) / "attention"
        folder.mkdir(parents=True, exist_ok=True)
        model = unwrap_model(runner.model)
        training = model.training
        model.eval()
        for index in range(min(self.num_images, len(dataset))):
            data = dataset[index]
            path = folder / f"{Path(data['data_samples'].img_path).stem}.png"
            FigureCanvasAgg(picture_of(model, data, dataset.metainfo["palette"])).print_png(str(path))
            runner.logger.info(f"Picture of the attention maps: {path}")
        model.train(training)


@torch.no_grad()
def picture_of(model: Any, data: dict[str, Any], palette: Sequence[Any]) -> Figure:
    """The picture of one sample of a validation pipeline; ``model`` must be in eval mode.

    Args:
        model: a segmentor of mmseg, plain or FRSKD.
        data: ``inputs`` [3, H, W] in BGR and ``data_samples``, as a dataset hands them out.
        palette: RGB colour of each class, 0..255.
    """
    batch = model.data_preprocessor(pseudo_collate([data]), training=False)
    feats = model.extract_feat(batch["inputs"])
    truth = batch["data_samples"][0].gt_sem_seg.data[0].cpu().numpy()
    image = _image_at(data["inputs"], truth.shape)

    segmentors, attentions = {"prediction": model}, {"student": feats}
    if hasattr(model, "self_teacher"):
        segmentors = {"student": model, "self-teacher": model.as_self_teacher()}
        attentions["self-teacher"] = model.self_teacher.neck(feats)
    labels = {"truth": truth}
    for title, segmentor in segmentors.items():
        samples = [sample.clone() for sample in batch["data_samples"]]
        labels[title] = segmentor.predict(batch["inputs"], samples)[0].pred_sem_seg.data[0].cpu().numpy()
    panels = {title: attention_panels(maps, truth.shape) for title, maps in attentions.items()}
    return draw_picture(image, labels, panels, palette)


def _image_at(inputs: Tensor, size: tuple[int, int]) -> np.ndarray:
    """BGR [3, H, W] -> RGB [*size, 3]."""
    image = resize(inputs.flip(0)[None].float(), size, mode="bilinear", align_corners=False)[0]
    return image.permute(1, 2, 0).clamp(0, 255).byte().cpu().numpy()
