"""A Runner that trains in a blink: two layers on eight vectors, with mmengine's loops and our checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import Tensor, nn


@MODELS.register_module(force=True)
class ToyModel(BaseModel):
    """Layers of 4 and 3 units with dropout in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.dropout = nn.Dropout()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor, targets: Tensor, mode: str) -> Any:
        logits = self.head(self.dropout(self.stem(inputs).relu()))
        return {"loss": F.cross_entropy(logits, targets)} if mode == "loss" else list(logits.argmax(1) == targets)


@DATASETS.register_module(force=True)
class ToyData:
    """Eight vectors of three classes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(int(index))
        return dict(inputs=torch.randn(4, generator=generator), targets=int(index) % 3)


@METRICS.register_module(force=True)
class ToyMetric(BaseMetric):
    """Scores as numpy's numbers, as mmseg's are."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results += [bool(sample) for sample in data_samples]

    def compute_metrics(self, results: list[bool]) -> dict[str, Any]:
        return {"top1": 100 * np.mean(results), "right": np.sum(results)}


def toy_config(epochs: int = 4) -> Config:
    """A config of four iterations an epoch that validates after each."""

    def loader(batch_size: int, shuffle: bool) -> dict[str, Any]:
        return dict(
            batch_size=batch_size,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=shuffle),
            dataset=dict(type="ToyData"),
            collate_fn=dict(type="default_collate"),
        )

    return Config(
        dict(
            custom_imports=dict(imports=["frskd_plugin", "tests.helpers.toy_run"]),
            visualizer=dict(type="Visualizer", vis_backends=[], name="visualizer"),
            randomness=dict(seed=3),
            model=dict(type="ToyModel"),
            train_dataloader=loader(2, shuffle=True),
            val_dataloader=loader(8, shuffle=False),
            val_evaluator=dict(type="ToyMetric"),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
            train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=1),
            val_cfg=dict(type="ValLoop"),
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1),
                checkpoint=dict(
                    type="AtomicCheckpointHook", interval=1, max_keep_ckpts=2, save_best="top1", rule="greater"
                ),
            ),
            custom_hooks=[dict(type="StepSeedHook")],
        )
    )
