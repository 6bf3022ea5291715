"""Mixup and CutMix as the paper's Table 8 uses them (reference section 8).

Both mix each image of a batch with a partner and give soft targets ``lam * y + (1 - lam) * y[index]``.

`timm.data.Mixup` makes the same images and targets of the same partners, ``lam`` and box. Its draws differ: image ``i``
meets image ``B - 1 - i``, an odd side of a box stays odd, labels are smoothed by default, and numpy's state is drawn
from. Here partners are a random permutation, a side is one less, labels stay, and torch's state is drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from frskd_plugin.core.checks import can_read

Box = tuple[int, int, int, int]


def mixup(images: Tensor, lam: float | Tensor, index: Tensor) -> Tensor:
    """Blend each image of [B, C, H, W], floats, with its partner: ``lam * x + (1 - lam) * x[index]``."""
    if not images.is_floating_point():
        raise TypeError(
            f"Mixup blends float images, got {images.dtype}, whose values would be cut off: normalise before mixing."
        )
    return lam * images + (1 - lam) * images[index]


def cutmix_box(lam: float, centre: tuple[int, int], height: int, width: int) -> tuple[Box, float]:
    """Return a box (row0, row1, column0, column1) of about a share ``1 - lam`` around a centre, and the ``lam`` left.

    Sizes are truncated and halved, so that an odd size gives a box of one pixel less; the box is clipped at the
    borders, and the second value is the share of the image that lies outside the clipped box.
    """
    share = math.sqrt(1 - lam)
    half_height, half_width = int(height * share) // 2, int(width * share) // 2
    row, column = centre
    row0, row1 = max(row - half_height, 0), min(row + half_height, height)
    column0, column1 = max(column - half_width, 0), min(column + half_width, width)
    return (row0, row1, column0, column1), 1 - (row1 - row0) * (column1 - column0) / (height * width)


def cutmix(images: Tensor, box: Box | Tensor, index: Tensor) -> Tensor:
    """Return copies of images [B, C, H, W] with the box (row0, row1, column0, column1) taken from their partners."""
    row0, row1, column0, column1 = box
    rows, columns = (torch.arange(size, device=images.device) for size in images.shape[2:])
    in_rows, in_columns = (rows >= row0) & (rows < row1), (columns >= column0) & (columns < column1)
    # a mask and not a slice: a box that lies on the device has no numbers for the host
    return torch.where(in_rows[:, None] & in_columns, images[index], images)


def mixed_targets(targets: Tensor, index: Tensor, lam: float | Tensor, num_classes: int) -> Tensor:
    """Return soft targets ``lam * y + (1 - lam) * y[index]`` [B, K] of labels [B] or of soft targets [B, K]."""
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be >= 1, got {num_classes}.")
    if targets.ndim == 1 and not targets.is_floating_point():
        if can_read(targets) and len(targets) and not 0 <= targets.min() <= targets.max() < num_classes:
            raise ValueError(
                f"labels must be 0..{num_classes - 1}, got {targets.min()}..{targets.max()}: num_classes={num_classes} "
                "does not fit the data set."
            )
        soft = F.one_hot(targets.long(), num_classes).to(torch.get_default_dtype())
    elif targets.ndim == 2 and targets.is_floating_point() and targets.shape[1] == num_classes:
        soft = targets
    else:
        raise ValueError(
            f"targets must be labels [B] (integers) or soft targets [B, {num_classes}] (floats), got "
            f"{list(targets.shape)} of {targets.dtype}."
        )
    return lam * soft + (1 - lam) * soft[index]


class Mixup:
    """Mixup of every batch: one ``lam ~ Beta(alpha, alpha)``, as drawn, and one random permutation.

    Args:
        alpha: of the Beta distribution, above 0; the paper has 0.2 and 0.3.
        generator: a generator of the CPU; torch's global one by default.
    """

    def __init__(self, alpha: float = 0.2, generator: torch.Generator | None = None) -> None:
        if not alpha > 0:
            raise ValueError(
                f"`alpha` of Beta(alpha, alpha) must be above 0, got {alpha}. To mix nothing, leave it out."
            )
        self.alpha = float(alpha)
        self.generator = generator

    def draw(self, shape: Sequence[int]) -> dict[str, Tensor]:
        """Draw what mixes a batch [B, C, H, W], on the CPU: ``lam`` [] in float64 and partners ``index`` [B]."""
        lam = torch.tensor(draw_beta(self.alpha, self.generator), dtype=torch.float64)
        return {"lam": lam, "index": torch.randperm(shape[0], generator=self.generator)}

    def __call__(
        self, images: Tensor, targets: Tensor, num_classes: int, drawn: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix images [B, C, H, W] and labels [B] or soft targets [B, K]; the mixed targets are soft, [B, K].

        ``drawn`` is of `draw`, on any device; by default it is drawn now.
        """
        drawn = self.draw(images.shape) if drawn is None else drawn
        index = drawn["index"].to(images.device, non_blocking=True)
        return self.mix(images, index, drawn), mixed_targets(targets, index, drawn["lam"], num_classes)

    def mix(self, images: Tensor, index: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        return mixup(images, drawn["lam"], index)


class CutMix(Mixup):
    """CutMix of every batch: one box, with ``lam ~ Beta(alpha, alpha)``, and one random permutation, see `Mixup`."""

    def __init__(self, alpha: float = 1.0, generator: torch.Generator | None = None) -> None:
        super().__init__(alpha, generator)

    def draw(self, shape: Sequence[int]) -> dict[str, Tensor]:
        """Draw ``lam``, here the share outside of the box, ``index``, and ``box`` int64 [4]; see `Mixup.draw`."""
        drawn = super().draw(shape)
        height, width = shape[2:]
        row, column = (int(torch.randint(size, (), generator=self.generator)) for size in (height, width))
        box, lam = cutmix_box(float(drawn["lam"]), (row, column), height, width)
        return {**drawn, "lam": torch.tensor(lam, dtype=torch.float64), "box": torch.tensor(box)}

    def mix(self, images: Tensor, index: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        return cutmix(images, drawn["box"].to(images.device, non_blocking=True), index)


def draw_beta(alpha: float, generator: torch.Generator | None = None) -> float:
    """Draw a number from Beta(alpha, alpha) that follows from torch's random state.

    `torch.distributions.Beta` takes no generator, so numpy draws it from a seed that torch draws.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
