"""Pictures of what a segmentor and its self-teacher look at (Figures 3 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.dataset import pseudo_collate
from mmseg.models.utils import resize
from torch import Tensor

from frskd_plugin.mmengine.attention import AttentionHook, Panel, as_picture, attention_panels, draw_grid
from frskd_plugin.mmseg.student_outputs import flat_maps


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


class AttentionPictureHook(AttentionHook):
    """Image, truth, predictions, and attention maps per level; see `AttentionHook` for its settings.

    A plain segmentor gets the same picture without the self-teacher's row.
    """

    def picture(self, model: Any, dataset: Any, index: int) -> tuple[str, Figure]:
        """See `AttentionHook.picture`."""
        data = dataset[index]
        return Path(data["data_samples"].img_path).stem, picture_of(model, data, dataset.metainfo["palette"])


@torch.no_grad()
def picture_of(model: Any, data: dict[str, Any], palette: Sequence[Any]) -> Figure:
    """The picture of one sample of a validation pipeline; ``model`` must be in eval mode.

    Args:
        model: a segmentor of mmseg, plain or FRSKD.
        data: ``inputs`` [C, H, W] in BGR, other bands behind it, and ``data_samples``, as a dataset hands them out.
        palette: RGB colour of each class, 0..255.
    """
    batch = model.data_preprocessor(pseudo_collate([data]), training=False)
    truth = batch["data_samples"][0].gt_sem_seg.data[0].cpu().numpy()
    image = _image_at(data["inputs"], truth.shape)

    segmentors, attentions = {"prediction": model}, {}
    if hasattr(model, "self_teacher"):
        segmentors = {"student": model, "self-teacher": model.as_self_teacher()}
        attentions["student"], attentions["self-teacher"] = model.distilled_maps(batch["inputs"])
    else:
        attentions["student"] = flat_maps(model.extract_feat(batch["inputs"]))
    labels = {"truth": truth}
    for title, segmentor in segmentors.items():
        samples = [sample.clone() for sample in batch["data_samples"]]
        labels[title] = segmentor.predict(batch["inputs"], samples)[0].pred_sem_seg.data[0].cpu().numpy()
    panels = {title: attention_panels(maps, truth.shape) for title, maps in attentions.items()}
    return draw_picture(image, labels, panels, palette)


def _image_at(inputs: Tensor, size: tuple[int, int]) -> np.ndarray:
    """BGR [C, H, W], other bands behind it -> RGB [*size, 3]."""
    image = resize(inputs[:3].flip(0)[None].float(), size, mode="bilinear", align_corners=False)[0]
    return as_picture(image)
