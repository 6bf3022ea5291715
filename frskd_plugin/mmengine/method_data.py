"""Data as a training method asks for it (`DataNeeds`): views, indices, orders of batches.

The batch samplers take order, share of the process, seed and epoch of a `SeededSampler`, so they are the same after a
resume. ``batch_size`` counts the images that are new in a step: a batch holds twice as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import BatchSampler

from frskd_plugin.core.checks import check_positive_int
from frskd_plugin.methods import DataNeeds, check_settings, method_class, method_settings
from frskd_plugin.methods.frskd import FRSKD
from frskd_plugin.mmengine.config_tools import is_classifier
from frskd_plugin.mmengine.seeding import DatasetWrapper, DrawnIndex, SeededSampler

# DataNeeds.order -> the batch sampler that makes it
BATCH_SAMPLERS = {"class_pairs": "ClassPairBatchSampler", "overlap": "OverlapBatchSampler"}


def method_name(config: Config) -> str:
    """Return the name of the training method in a classifier's config; 'baseline' where there is none."""
    return str(_method_of(config)["name"])


def set_method(config: Config, name: str | None, options: Mapping[str, Any]) -> bool:
    """Replace the training method in a classifier's config, or change its settings; True where it is another one now.

    FRSKD and what builds on it begin with the weights for the data set where the config knows them (its ``frskd``).

    Args:
        config: is changed.
        name: of the method; None, or the config's own, keeps the config's method and its settings.
        options: settings, with dots for nested ones: ``{"teacher.model_name": "resnet34"}``.

    Raises:
        ValueError: the config's model is no `TimmClassifier`, or there is no such method.
    """
    if not is_classifier(config):
        raise ValueError(
            "--method and --method-options are for classifiers (model.type='TimmClassifier'), but the config's model "
            f"is {config.get('model', {}).get('type')!r}; leave them out"
        )
    method = _method_of(config)
    name = method["name"] if name is None else name
    replaced = name != method["name"]
    if replaced:
        weights = config.get("frskd") if issubclass(method_class(name), FRSKD) else None
        method = {"name": name, **(weights or {})}
    config.model.method = method
    config.merge_from_dict({f"model.method.{key}": value for key, value in options.items()})
    return replaced


def provide_method_data(config: Config) -> None:
    """Change a classifier's config so that its method gets the views, the order and the indices that it asks for.

    Calling it again changes nothing. A method with a setting ``num_samples`` (PS-KD) gets the size of the training set,
    and `MethodProgressHook` joins the hooks. Settings that are not the method's raise a ValueError.
    """
    method = _method_of(config)
    name = method.pop("name")
    needs = method_class(name).needs
    hooks = list(config.get("custom_hooks") or [])
    if all(hook.get("type") != "MethodProgressHook" for hook in hooks):
        config.custom_hooks = [*hooks, dict(type="MethodProgressHook")]
    loader = config.get("train_dataloader")
    if loader is not None:
        _provide(loader, needs)
        if "num_samples" in method_settings(name) and method.get("num_samples") is None:
            method["num_samples"] = config.model.method["num_samples"] = _count_samples(loader.dataset)
    try:
        check_settings(name, method)
    except TypeError as error:
        raise ValueError(f"model.method: {error}") from error


def _method_of(config: Config) -> dict[str, Any]:
    method = dict(config.model.get("method") or {"name": "baseline"})
    if "name" not in method:
        raise ValueError(f"model.method must have a name, such as dict(name='frskd'), got {method}")
    return method


def _provide(loader: dict[str, Any], needs: DataNeeds) -> None:
    if loader["dataset"].get("type") == "MethodDataset":  # of the config that a run has written
        loader["dataset"] = loader["dataset"]["dataset"]
    if needs.views > 1 or needs.index:
        loader["dataset"] = dict(type="MethodDataset", views=needs.views, index=needs.index, dataset=loader["dataset"])
    # a batch sampler of the user's own stays
    if (loader.get("batch_sampler") or {}).get("type") in (None, *BATCH_SAMPLERS.values()):
        loader.pop("batch_sampler", None)
        if needs.order != "any":
            loader["batch_sampler"] = dict(type=BATCH_SAMPLERS[needs.order])


def _count_samples(dataset: dict[str, Any]) -> int:
    inner = dataset
    while isinstance(inner.get("dataset"), dict):
        inner = inner["dataset"]
    if inner.get("expected_images") is not None and inner.get("images_per_class") is None:
        return inner["expected_images"]  # any other number ends the run when the data set is opened
    return len(DATASETS.build(dataset))


class MethodDataset(DatasetWrapper):
    """Data set whose samples hold augmented views of each image, or its place in the data set.

    A sample is asked for once for each view, and the views differ by the ``draw`` of their `DrawnIndex`: they are the
    same after a resume and with any number of workers. With a plain `int` they differ by the random state as it is.

    Args:
        dataset: a data set of ``dict(inputs=uint8 [C, H, W], targets=int)``, or its config; `SeededDataset` and
            `TensorImages`, which makes whole batches, among them.
        views: views of each image, all of one size; above 1, ``inputs`` are [views, C, H, W].
        index: add the image's place in the data set as ``index``.
    """

    def __init__(self, dataset: Any, views: int = 1, index: bool = False) -> None:
        super().__init__(dataset)
        self.views = check_positive_int("views", views)
        self.index = bool(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._join([self.dataset[i] for i in self._draws(index)], int(index), dim=0)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any] | list[dict[str, Any]]:
        """Return a batch of a data set that makes whole ones, views [B, views, C, H, W]; else a list of samples."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        draws = zip(*map(self._draws, indices), strict=True)
        places = torch.tensor([int(index) for index in indices])
        return self._join([self.dataset.__getitems__(list(view)) for view in draws], places, dim=1)

    def plan(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the plans of a batch's views (`TensorImages`), ``index`` [B, views] and ``crops`` [B, views, 3]."""
        draws = zip(*map(self._draws, indices), strict=True)
        plans = [self.dataset.plan(list(view)) for view in draws]
        return {name: torch.stack([plan[name] for plan in plans], dim=1) for name in plans[0]}

    def take(self, plan: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the batch of a `plan`, see `TensorImages.take`."""
        views = [self.dataset.take({name: value[:, i] for name, value in plan.items()}) for i in range(self.views)]
        return self._join(views, plan["index"][:, 0], dim=1)

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


def _check_sampler(batches: BatchSampler) -> None:
    if not isinstance(batches.sampler, SeededSampler):
        raise TypeError(
            f"{type(batches).__name__} needs train_dataloader.sampler of type SeededSampler, got "
            f"{type(batches.sampler).__name__}; set sampler=dict(type='SeededSampler', shuffle=True) and train by "
            f"epochs."
        )


class ClassPairBatchSampler(BatchSampler):
    """Sampler of batches whose second half holds, in the same order, partners of the first half's images.

    Every image is once an epoch in a first half. Its partner is another image of its class where there is one, drawn
    anew each epoch, and augmented otherwise than where it is in a first half itself. The data set of the
    `SeededSampler` must have ``targets``, the label of each image.
    """

    def __init__(self, sampler: SeededSampler, batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        _check_sampler(self)
        self.targets = labels_of(sampler.dataset)

    def __iter__(self) -> Iterator[list[DrawnIndex]]:
        partners = class_partners(self.targets, self.sampler.seed, self.sampler.epoch).tolist()
        order = list(self.sampler)
        for start in range(0, len(order), self.batch_size):
            images = order[start : start + self.batch_size]
            yield [*images, *(DrawnIndex(partners[i], i.epoch, i.seed, draw=1) for i in images)]


class OverlapBatchSampler(BatchSampler):
    """Sampler of batches whose first half is the second half of the batch before, augmented anew.

    Every image is new once an epoch; see `overlapping_batches` for the two ends of an epoch.
    """

    def __init__(self, sampler: SeededSampler, batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        _check_sampler(self)
        overlapping_batches(range(len(sampler)), batch_size)  # raises if one half holds all images

    def __iter__(self) -> Iterator[list[DrawnIndex]]:
        for before, new in overlapping_batches(list(self.sampler), self.batch_size):
            yield [*(index.redrawn(1) for index in before), *new]

    def __len__(self) -> int:
        return super().__len__() - 1


def labels_of(dataset: Any) -> Tensor:
    """Return the label of each image, int64 [N] on the CPU, of a data set or of the one that it wraps."""
    inner = dataset
    while not hasattr(inner, "targets") and hasattr(inner, "dataset"):
        inner = inner.dataset
    if not hasattr(inner, "targets"):
        raise ValueError(
            f"Pairs of one class need the label of each image: {type(inner).__name__} must have them as `targets`, as "
            "data sets of torchvision do."
        )
    labels = torch.as_tensor(inner.targets).cpu()
    if len(labels) != len(dataset):
        raise ValueError(f"The data set has {len(dataset)} images and {len(labels)} labels (`targets`).")
    return labels


def class_partners(targets: Tensor, seed: int, epoch: int) -> Tensor:
    """Draw another image of its class for each, int64 [N]; itself, where a class has one. All processes draw alike."""
    by_class = targets.argsort(stable=True)  # images of one class side by side
    _, counts = targets[by_class].unique_consecutive(return_counts=True)
    size, start = counts.repeat_interleave(counts), (counts.cumsum(0) - counts).repeat_interleave(counts)
    rng = np.random.default_rng([seed, epoch, 0x70616972])  # a stream apart from that of the crops
    step = torch.from_numpy(rng.integers(1, size.clamp(min=2).numpy()))  # to another place in the class
    place = start + (torch.arange(len(targets)) - start + step) % size
    partners = torch.empty_like(by_class)
    partners[by_class] = by_class[place]
    return partners


def overlapping_batches(order: Sequence[Any], size: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield both halves of each batch: ``size`` images that the batch before had too, and ``size`` that are new.

    Of the first batch both halves are new. Where ``size`` does not divide the number of images, the last half is filled
    up with images from the beginning of the order.

    >>> list(overlapping_batches([4, 0, 3, 1, 2], 2))
    [([4, 0], [3, 1]), ([3, 1], [2, 4])]
    """
    if len(order) <= size:
        raise ValueError(
            f"Overlapping batches take two halves of {size} images at least, got {len(order)} images: lower batch_size."
        )
    images = [*order, *order[: -len(order) % size]]
    halves = [images[start : start + size] for start in range(0, len(images), size)]
    return zip(halves, halves[1:], strict=False)
