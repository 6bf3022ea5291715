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

from frskd_plugin.mmengine.attention import AttentionHook, Panel, as_picture, attention_panels, draw_grid
from frskd_plugin.mmseg.heads import flat_maps


class AttentionPictureHook(AttentionHook):
    """Draw image, truth, predictions, and attention maps by level; a plain segmentor has no self-teacher's row."""

    def picture(self, model: Any, dataset: Any, index: int) -> tuple[str, Figure]:
        """See `AttentionHook.picture`."""
        data = dataset[index]
        return Path(data["data_samples"].img_path).stem, picture_of(model, data, dataset.metainfo["palette"])


@torch.no_grad()
def picture_of(model: Any, data: dict[str, Any], palette: Sequence[Any]) -> Figure:
    """Draw one sample of a validation pipeline: image and label maps, then a row of attention maps for each network.

    Args:
        model: a segmentor of mmseg, plain or FRSKD, in eval mode.
        data: ``inputs`` [C, H, W] in BGR, other bands behind it, and ``data_samples``, as a dataset hands them out.
        palette: RGB colour of each class, 0..255; other labels are black.
    """
    batch = model.data_preprocessor(pseudo_collate([data]), training=False)
    truth = batch["data_samples"][0].gt_sem_seg.data[0].cpu().numpy()
    image = as_picture(resize(data["inputs"][:3].flip(0)[None].float(), truth.shape, mode="bilinear")[0])

    if hasattr(model, "self_teacher"):
        segmentors = {"student": model, "self-teacher": model.as_self_teacher()}
        attentions = dict(zip(segmentors, model.distilled_maps(batch["inputs"]), strict=True))
    else:
        segmentors, attentions = {"prediction": model}, {"student": flat_maps(model.extract_feat(batch["inputs"]))}
    labels = {"truth": truth}
    for title, segmentor in segmentors.items():
        samples = [sample.clone() for sample in batch["data_samples"]]
        labels[title] = segmentor.predict(batch["inputs"], samples)[0].pred_sem_seg.data[0].cpu().numpy()

    colours: np.ndarray = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = np.asarray(palette, np.uint8)
    rows = [[Panel("image", image), *(Panel(title, colours[label]) for title, label in labels.items())]]
    for network, maps in attentions.items():
        panels = attention_panels(maps, truth.shape)
        rows.append([Panel(f"{network}, level {level}", image, panel) for level, panel in enumerate(panels)])
    return draw_grid(rows)
