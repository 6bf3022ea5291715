"""A dataset wrapper for methods that ask for more of a sample than an image and its target (`DataNeeds`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import DATASETS

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.mmengine.seeded_sampler import DrawnIndex


class MethodDataset:
    """Augmented views of each image, and its place in the data set, in the samples of a classification data set.

    A sample is asked for once for each view, and the views differ by the ``draw`` of their `DrawnIndex`: they are the
    same after a resume and with any number of workers. With a plain `int` they differ by the random state as it is.

    Args:
        dataset: a data set of ``dict(inputs=uint8 [C, H, W], targets=int)``, or its config; `SeededDataset` and
            `TensorImages`, which makes whole batches, among them.
        views: views of each image; above 1, ``inputs`` are [views, C, H, W].
        index: add the image's place in the data set as ``index``.

    Raises:
        TypeError: ``views`` is no integer.
        ValueError: ``views`` is below 1; or, when a sample is read, its views differ in size.
    """

    def __init__(self, dataset: Any, views: int = 1, index: bool = False) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.views = check_positive_int("views", views)
        self.index = bool(index)

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    def full_init(self) -> None:
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._join([self.dataset[i] for i in self._draws(index)], int(index), dim=0)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any] | list[dict[str, Any]]:
        """A batch of a data set that makes whole ones, with views [B, views, C, H, W]; else a list of samples."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        draws = zip(*map(self._draws, indices), strict=True)
        places = torch.tensor([int(index) for index in indices])
        return self._join([self.dataset.__getitems__(list(view)) for view in draws], places, dim=1)

    def _draws(self, index: int) -> list[int]:
        if not isinstance(index, DrawnIndex):
            return [index] * self.views
        return [index.redrawn(self.views * index.draw + view) for view in range(self.views)]

    def _join(self, views: list[dict[str, Any]], index: Any, dim: int) -> dict[str, Any]:
        joined = dict(views[0])
        if self.views > 1:
            images = [view["inputs"] for view in views]
            if len({image.shape for image in images}) > 1:
                sizes = [list(image.shape[-2:]) for image in images]
                raise ValueError(
                    f"Views of an image must have one size, got {sizes}: end the training transforms with a crop, such "
                    "as dict(type='RandomResizedCrop', size=224)."
                )
            joined["inputs"] = torch.stack(images, dim=dim)
        if self.index:
            joined["index"] = index
        return joined
