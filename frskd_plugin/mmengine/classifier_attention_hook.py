"""Pictures of what a classifier and its self-teacher look at (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from frskd_plugin.mmengine.attention_hook import AttentionHook
from frskd_plugin.mmengine.attention_maps import Panel, as_picture, attention_panels, draw_grid, refine


class ClassifierAttentionPictureHook(AttentionHook):
    """The image with the class that each network predicts, and its attention maps, block by block.

    It serves a `TimmClassifier` with any method; only a self-teacher has a row of its own.
    """

    def picture(self, model: Any, dataset: Any, index: int) -> tuple[str, Figure]:
        """See `AttentionHook.picture`."""
        sample = dataset[index]
        classes = getattr(dataset, "metainfo", {}).get("classes", ())
        return f"image_{index}", picture_of(model, sample["inputs"], int(sample["targets"]), classes)


@torch.no_grad()
def picture_of(model: Any, image: Tensor, target: int, classes: Sequence[str] = ()) -> Figure:
    """The picture of one image; ``model`` must be in eval mode.

    Args:
        model: a `TimmClassifier`.
        image: uint8 [C, H, W], RGB or with any number of bands.
        target: its label.
        classes: names of the labels; without them they are numbers.
    """
    inputs = model.data_preprocessor(dict(inputs=image[None], targets=torch.tensor([target])))["inputs"]
    feats, logits = model.network.student_forward(inputs)
    pixels = as_picture(image)
    networks = {"student": (logits, feats)}
    method = model.network.method
    if hasattr(method, "self_teacher"):
        networks["self-teacher"] = method.teacher_logits(feats), refine(method.self_teacher.neck, feats)
    rows: list[list[Panel | None]] = []
    for name, (scores, maps) in networks.items():
        title = f"{_name(target, classes)}\n{name}: {_name(int(scores.argmax()), classes)}"
        panels = attention_panels(maps, pixels.shape[:2])
        levels = [Panel(f"{name}, block {level}", pixels, panel) for level, panel in enumerate(panels, start=1)]
        rows.append([Panel(title, pixels), *levels])
    return draw_grid(rows)


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else f"class {label}"
