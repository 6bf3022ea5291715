"""The paper's Figures 3 and 5 of one image: what student and self-teacher look at, checkpoint by checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from frskd_plugin.mmengine.attention_maps import Panel, attention_panels, draw_grid
from frskd_plugin.mmengine.trained_network import TrainedNetwork

Row = list[Panel | None]


def attention_picture(networks: Sequence[TrainedNetwork], path: Path) -> Figure:
    """The image, then for each network a column a level: the student's attention above the self-teacher's.

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
    """The epoch of each; with the name of the run where the networks are of several runs."""
    several = len({network.run for network in networks}) > 1
    return [f"{network.run}, {network.label}" if several else network.label for network in networks]


def in_order(networks: Sequence[TrainedNetwork]) -> list[TrainedNetwork]:
    """Runs in the order in which they come, and the epochs of each ascending (a shell puts epoch_10 before epoch_2)."""
    runs = [network.run for network in networks]
    return sorted(networks, key=lambda network: (runs.index(network.run), network.step))
