"""Small images as one tensor on the device that trains: a batch is one gather, its random crops and flips included.

A batch of random crops is a single indexing operation on a view of it::

    dataset = TensorImages(images, targets, augment=True, device="cuda")
    loader = DataLoader(dataset, batch_size=128, sampler=sampler, num_workers=0, collate_fn=take_batch)

The loader asks `TensorImages.__getitems__` for the whole batch, so that the sampler stays that of any other data set.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from frskd_plugin.data.cifar100 import load_cifar100


def draw_crops(count: int, padding: int, seed: int, epoch: int, draw: int = 0) -> Tensor:
    """Draw crop and flip of every image of a pass: (top, left, flip) as int64 [N, 3].

    ``top`` and ``left`` lie in 0..2 * padding, ``flip`` is 0 or 1. The numbers follow from the seed and the epoch alone
    (and from ``draw``, where a pass needs several crops of an image): on any device, in every process, after a resume.
    """
    if min(seed, epoch, draw) < 0:
        raise ValueError(f"seed, epoch and draw must not be negative, got seed={seed}, epoch={epoch}, draw={draw}.")
    rng = np.random.default_rng([seed, epoch, draw] if draw else [seed, epoch])
    return torch.from_numpy(rng.integers([2 * padding + 1, 2 * padding + 1, 2], size=(count, 3)))


def mirrored_canvas(images: Tensor, padding: int) -> Tensor:
    """Lay each image [H, W] on a black canvas [H + 2p, 2W + 3p], its mirror image to the right of it.

    Any crop of the padded image, flipped or not, is then a window [H, W] of the canvas. It holds more than twice
    the bytes of the images (456 MB for the 50000 of CIFAR-100), and makes a batch in one operation instead of four.
    """
    return torch.cat([F.pad(images, [padding] * 4), F.pad(images.flip(-1), [0, padding, padding, padding])], dim=-1)


def crop_windows(canvas: Tensor, index: Tensor, crops: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the crops of a batch: equal to torchvision's `crop` of the padded image at (top, left), and `hflip` after it.

    They are windows of ``size`` (H, W) of a `mirrored_canvas`; ``index`` [B] names the images, ``crops`` [B, 3] are
    (top, left, flip).
    """
    height, width = size
    windows = canvas.unfold(2, height, 1).unfold(3, width, 1)  # a view [N, C, tops, lefts, H, W]
    top, left, flip = crops.unbind(1)
    last = windows.shape[3] - 1  # the window of the mirror image that belongs to left = 0
    return windows[index, :, top, torch.where(flip == 1, last - left, left)]


class TensorImages:
    """Map-style data set of small images that lies on one device as a whole and hands out batches.

    In training, indices that carry ``epoch`` and ``seed`` (`frskd_plugin.mmengine.SeededSampler` makes them), and maybe
    a ``draw``, take crop and flip from these and the index alone. A plain int draws from torch's global generator.

    Args:
        images: uint8 [N, C, H, W], tensor or array; it is copied.
        targets: integers [N].
        augment: a random crop of the image padded by black, and a horizontal flip of half of the images.
        padding: pixels on each side before the crop.
        device: where the images are kept and the batches made.
        classes: names of the classes, for `metainfo`.
    """

    def __init__(
        self,
        images: Tensor | np.ndarray,
        targets: Tensor | np.ndarray | Sequence[int],
        augment: bool = False,
        padding: int = 4,
        device: str | torch.device = "cpu",
        classes: Sequence[str] = (),
    ) -> None:
        images, targets = torch.as_tensor(images), torch.as_tensor(targets)
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 (0..255, not normalised), got {images.dtype}.")
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise TypeError(f"targets must be integers, got {targets.dtype}.")
        if images.ndim != 4 or targets.shape != images.shape[:1] or not len(images):
            raise ValueError(
                f"images must be [N, C, H, W] and targets [N] with N >= 1, got {list(images.shape)} and "
                f"{list(targets.shape)}."
            )
        if padding < 0:
            raise ValueError(
                f"`padding` must not be negative, got {padding}. Use augment=False to switch the crop off."
            )
        self.augment = augment
        self.padding = padding
        self.device = torch.device(device)
        self.classes = tuple(classes)
        self.size = tuple(images.shape[-2:])
        images = images.to(self.device)
        self._images = mirrored_canvas(images, padding) if augment else images.clone()
        self.targets = targets.to(self.device, torch.int64, copy=True)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Return the names of the classes, as OpenMMLab's data sets give them."""
        return {"classes": self.classes}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch: inputs uint8 [B, C, H, W] and targets int64 [B], new tensors on the data set's device."""
        if self.device.type != "cpu" and get_worker_info() is not None:
            raise ValueError(
                f"The images lie on {self.device}, which a worker process of the DataLoader cannot read: set "
                "num_workers=0. Nothing is left for workers to do."
            )
        plan = self.plan(indices)
        return self.take({name: value.to(self.device, non_blocking=True) for name, value in plan.items()})

    def plan(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return what `take` makes a batch of: ``index`` [B] and, with augmentation, ``crops`` [B, 3], on the CPU."""
        index = torch.tensor([int(i) for i in indices])
        return {"index": index, "crops": self._crops_of(indices, index)} if self.augment else {"index": index}

    def take(self, plan: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch of a `plan` that lies on the data set's device; the same operations for every batch."""
        index = plan["index"]
        images = crop_windows(self._images, index, plan["crops"], self.size) if self.augment else self._images[index]
        return {"inputs": images, "targets": self.targets[index]}

    def _crops_of(self, indices: Sequence[Any], index: Tensor) -> Tensor:
        if not all(hasattr(i, "epoch") for i in indices):
            high = 2 * self.padding + 1
            return torch.stack([torch.randint(bound, index.shape) for bound in (high, high, 2)], dim=1)
        passes = [(i.seed, i.epoch, getattr(i, "draw", 0)) for i in indices]
        crops = index.new_empty(len(index), 3)
        for key in dict.fromkeys(passes):
            places = torch.tensor([own == key for own in passes])
            crops[places] = _crop_table(len(self), self.padding, *key)[index[places]]
        return crops


# for the batches of a pass and its draws, of all trainings that take turns in this process (`--side-by-side`)
_crop_table = functools.lru_cache(maxsize=32)(draw_crops)


class TensorCifar100(TensorImages):
    """CIFAR-100 (`load_cifar100`) as `TensorImages`, for configs.

    ``augment=None`` augments the training images only, ``device=None`` is the current GPU, or the CPU without one.
    """

    def __init__(
        self,
        data_root: str | Path,
        split: str = "train",
        augment: bool | None = None,
        padding: int = 4,
        device: str | torch.device | None = None,
        images_per_class: int | None = None,
        expected_images: int | None = None,
    ) -> None:
        loaded = load_cifar100(data_root, split, images_per_class, expected_images)
        super().__init__(
            loaded.images,
            loaded.targets,
            augment=split == "train" if augment is None else augment,
            padding=padding,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            classes=loaded.classes,
        )


def take_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate for a loader whose data set hands out whole batches: nothing is left to do."""
    return batch
