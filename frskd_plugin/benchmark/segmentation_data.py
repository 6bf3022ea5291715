"""A segmentor's batches out of image files: drawn VOC scenes through a config's own pipeline and preprocessor."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frskd_plugin.benchmark.training_step import StepSettings, TrainingStep
from frskd_plugin.data.drawn_scenes import make_devkit

SCENES = 4
SCENE_SIZE = (375, 500)  # most of VOC's photographs


class DrawnBatches:
    """Reads, decodes, augments, collates and normalises a batch at a time, in this process.

    Args:
        config: a training config on VOC; its pipeline and preprocessor are used, at ``size``.
        root: new folder for the drawn scenes, or one that has them.
        size: height and width of the crops.
        settings: batch size, device and layout.
    """

    def __init__(self, config: Any, root: Path, size: int, settings: StepSettings) -> None:
        from mmengine.registry import init_default_scope
        from mmseg.registry import DATASETS, MODELS

        if not root.exists():
            make_devkit(root, train=SCENES, val=1, size=SCENE_SIZE)
        init_default_scope("mmseg")
        self.dataset = DATASETS.build(drawn_dataset(config, root, size))
        preprocessor = {**config.model.data_preprocessor, "size": (size, size)}
        self.preprocessor = MODELS.build(preprocessor).to(settings.device)
        self.settings = settings
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, batch: int) -> tuple[Tensor, list[Any]]:
        """Normalised images [B, 3, size, size] and their samples."""
        from mmengine.dataset import pseudo_collate

        indices = torch.randint(len(self.dataset), (batch,), generator=self.generator).tolist()
        data = self.preprocessor(pseudo_collate([self.dataset[index] for index in indices]), training=True)
        return data["inputs"].contiguous(memory_format=self.settings.memory_format), data["data_samples"]


class StepWithData:
    """A training step that makes its batch first; two of one seed see the same batches."""

    def __init__(self, step: TrainingStep, batches: DrawnBatches, batch: int) -> None:
        self.step, self.batches, self.batch = step, batches, batch
        self.count = 0

    def __call__(self) -> None:
        """One step."""
        # mmseg's augmentations draw from the global generators
        random.seed(self.count)
        np.random.seed(self.count)
        self.count += 1
        self.step.inputs = self.batches(self.batch)
        self.step()


def drawn_dataset(config: Any, root: Path, size: int) -> dict[str, Any]:
    """The config of the first data set of a training config, on the drawn scenes, with crops of ``size``."""
    dataset = copy.deepcopy(config.train_dataloader.dataset)
    while "datasets" in dataset or "dataset" in dataset:
        dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
    dataset["data_root"] = str(root)
    dataset["ann_file"] = "VOC2007/ImageSets/Segmentation/trainval.txt"
    for transform in dataset["pipeline"]:
        if transform["type"] == "RandomCrop":
            transform["crop_size"] = (size, size)
        elif transform["type"] == "RandomResize":
            transform["scale"] = (4 * size, size)
    return dataset
