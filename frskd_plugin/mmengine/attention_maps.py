"""Attention maps of feature maps, and pictures that lay them over the image (the paper's Figures 3 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from frskd_plugin.core.feature_losses import attention_map

INCH = 2.0  # height of an image
TITLE_LINE = 0.15  # height of a line of its title, of an image's
OPACITY = 0.55  # of an attention map over its image
# A map that varies by less than this part of its maximum is flat: stretched, it would show rounding errors.
MIN_SPREAD = 1e-4


def attention_panels(
    feats: Sequence[Tensor], size: tuple[int, int], padded_size: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """The attention map of each level: channel mean of the squares, bilinearly at image size, stretched to 0..1.

    A flat map becomes 0 everywhere.

    Args:
        feats: maps [1, C_i, H_i, W_i] of one image.
        size: height and width of the image.
        padded_size: height and width of what the network saw, where the image was padded below and on the right.

    Returns:
        A map [H, W] a level.

    >>> import torch
    >>> feat = torch.tensor([[[[1.0, 2.0]], [[1.0, 0.0]]]])  # means of squares: 1 and 2
    >>> attention_panels([feat], (1, 4))[0].round(2).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    panels = []
    for feat in feats:
        # its unit norm does not matter here
        attention = attention_map(feat).view(1, 1, *feat.shape[-2:])
        attention = F.interpolate(attention, padded_size or size, mode="bilinear", align_corners=False)
        attention = attention[0, 0, : size[0], : size[1]]
        low, high = attention.min(), attention.max()
        flat = high - low <= MIN_SPREAD * high
        stretched = attention * 0 if flat else (attention - low) / (high - low)
        panels.append(stretched.cpu().numpy())
    return panels


def refine(neck: nn.Module, feats: Sequence[Tensor]) -> list[Tensor]:
    """The self-teacher's maps; where it hands them out before their ReLU, after it, as the student's are."""
    preactivation = getattr(neck, "preactivation", False)
    return [F.relu(feat) if preactivation else feat for feat in neck(feats)]


def as_picture(image: Tensor) -> np.ndarray:
    """Return what a picture shows of an image [C, H, W] in 0..255 with any number of bands, as [H, W, 3] of uint8.

    The first three bands are taken as RGB; fewer are shown as the first one in grey.

    >>> import torch
    >>> as_picture(torch.zeros(5, 2, 4)).shape, as_picture(torch.zeros(2, 2, 4)).shape
    ((2, 4, 3), (2, 4, 3))
    """
    shown = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    return shown.float().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


@dataclass(frozen=True)
class Panel:
    """One field of a picture.

    Attributes:
        title: stands above it.
        image: RGB [H, W, 3], 0..255.
        attention: [H, W] in 0..1, laid over the image; None shows the image alone.
    """

    title: str
    image: np.ndarray
    attention: np.ndarray | None = None


def draw_grid(rows: Sequence[Sequence[Panel | None]]) -> Figure:
    """Panels in rows; None leaves a field empty, and so does the end of a row that is shorter than others.

    Args:
        rows: of panels. The first panel of all gives the shape of the fields.
    """
    columns = max(map(len, rows))
    panels = [panel for row in rows for panel in row if panel is not None]
    height, width = panels[0].image.shape[:2]
    row_height = 1 + TITLE_LINE * max(len(panel.title.splitlines()) for panel in panels)
    figure = Figure(figsize=(INCH * columns * width / height, INCH * row_height * len(rows)), layout="tight")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, row_axes in zip(rows, axes, strict=True):
        for panel, axis in zip(row, row_axes, strict=False):
            if panel is None:
                continue
            axis.set_title(panel.title, fontsize=7)
            axis.imshow(panel.image)
            if panel.attention is not None:
                axis.imshow(panel.attention, cmap="jet", alpha=OPACITY, vmin=0, vmax=1)
    return figure
