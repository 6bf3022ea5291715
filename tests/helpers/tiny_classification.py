"""Data sets and configs small enough to train real classifiers in a test, also in another process.

Configs import this module by `custom_imports`, so it registers its parts. It needs neither mmcv nor mmseg.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from frskd_plugin.data.tensor_images import TensorCifar100
from tests.helpers import real_runs  # noqa: F401  registers the hooks of the configs below

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM_CLASSES = 100  # CIFAR-100 has as many, whatever the number of images


@DATASETS.register_module(force=True)
class OddCifar100(TensorCifar100):
    """An odd number of images, which two processes cannot share evenly."""

    def __len__(self) -> int:
        return super().__len__() - 1


def write_cifar(root: Path, train: int = 60, test: int = 44) -> Path:
    """A CIFAR-100 python archive of a few images: a colour for each class, and noise."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, size=(NUM_CLASSES, 3, 1, 1))
    names = [f"class_{label:02}" for label in range(NUM_CLASSES)]
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % NUM_CLASSES
        images = (colours[labels] + rng.integers(-40, 40, size=(count, 3, 32, 32))).astype(np.uint8)
        content = {
            "data": images.reshape(count, -1),
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "filenames": [f"{index}.png" for index in range(count)],
            "batch_label": split,
        }
        (folder / split).write_bytes(pickle.dumps(content))
    meta = {"fine_label_names": names, "coarse_label_names": [f"group_{i}" for i in range(20)]}
    (folder / "meta").write_bytes(pickle.dumps(meta))
    return root


def write_image_folder(root: Path, per_class: int = 6, size: int = 40, num_classes: int = 4) -> Path:
    """Image folders ``train`` and ``test`` with noise of a colour for each class."""
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for label in range(num_classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for index in range(per_class):
                image = rng.integers(0, 60, size=(size, size + 8, 3)) + 40 * label
                Image.fromarray(image.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def tiny_config(data_root: Path, name: str = "frskd_cifar100_wrn_16_2", epochs: int = 3, **settings: Any) -> Config:
    """A config of the package on a tiny data set; `settings` override it (`train_cfg.max_epochs`, `__` for dots)."""
    from frskd_plugin.mmengine.config_tools import set_data_root

    config = Config.fromfile(CONFIGS / f"{name}.py")
    set_data_root(config, data_root)
    train = config.train_dataloader.dataset
    for dataset in (train.get("dataset", train), config.val_dataloader.dataset, config.test_dataloader.dataset):
        dataset.expected_images = None
        dataset.pop("expected_classes", None)
    changes = {
        "train_cfg.max_epochs": epochs,
        "param_scheduler.milestones": [epochs - 1],
        "default_hooks.logger.interval": 1,
        "train_dataloader.batch_size": 16,
        "val_dataloader.batch_size": 16,
        "randomness.seed": 3,
        "visualizer.vis_backends": [dict(type="LocalVisBackend")],
        "model.student.depth": 10,
        "model.student.k": 1,
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    config.merge_from_dict(changes)
    if config.model.method.name == "frskd":
        config.model.method.width = 1
    config.custom_imports = dict(imports=["frskd_plugin", "tests.helpers.tiny_classification"])
    hooks = [hook for hook in config.custom_hooks if hook.type != "ClassifierAttentionPictureHook"]
    config.custom_hooks = [*hooks, dict(type="EndHook"), dict(type="DumpRankHook")]
    return config
