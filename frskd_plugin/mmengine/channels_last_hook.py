"""Trains a model in the channels_last layout."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook


class ChannelsLastHook(Hook):
    """Lays the weights out as [B, H, W, C] in memory, before a checkpoint is loaded into them.

    Convolutions hand the layout of their weights on to their outputs, so the images need not be touched. Names, shapes
    and values stay; sums are taken in another order.
    """

    priority = "VERY_HIGH"

    def before_run(self, runner: Any) -> None:
        """Change the layout of the model, inside its wrapper too."""
        runner.model.to(memory_format=torch.channels_last)
