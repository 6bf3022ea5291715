"""A training of a classifier small enough for a second, on images that lie on the device, without validation."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner

from frskd_plugin.data.tensor_images import TensorImages
from frskd_plugin.mmengine.method_data import provide_method_data

STUDENT = dict(model_name="wrn_16_2", depth=10, k=1, num_classes=3)
ORDINARY, GRAPH = "EpochBasedTrainLoop", "GraphTrainLoop"


@DATASETS.register_module(force=True)
class ToyImages(TensorImages):
    """Fourteen images of noise: three batches of four, and a smaller one."""

    def __init__(self, device: str = "cpu") -> None:
        images = torch.randint(256, (14, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        super().__init__(images, torch.arange(14) % 3, augment=True, padding=1, device=device)


@HOOKS.register_module(force=True)
class DoubleHook(Hook):
    """Train in float64: batch statistics of few positions make a great difference of the last bits of float32."""

    def before_run(self, runner: Runner) -> None:
        runner.model.double()


def toy_config(method: dict[str, Any], loop: str = GRAPH, **settings: Any) -> Config:
    """Two epochs; `settings` override the config (`__` for dots)."""
    config = Config(
        dict(
            model=dict(
                type="TimmClassifier",
                student=STUDENT,
                input_size=(3, 8, 8),
                method=method,
                data_preprocessor=dict(type="ImagePreprocessor", mean=[127.0] * 3, std=[64.0] * 3),
            ),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                collate_fn=dict(type="take_batch"),
                sampler=dict(type="SeededSampler", shuffle=True),
                dataset=dict(type="ToyImages"),
            ),
            train_cfg=dict(type=loop, max_epochs=2),
            optim_wrapper=dict(
                type="OptimWrapper", optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-3)
            ),
            param_scheduler=dict(type="CosineAnnealingLR", T_max=2, by_epoch=True, end=2),
            default_hooks=dict(
                runtime_info=dict(type="DeferredInfoHook"),
                timer=dict(type="DeferredTimerHook"),
                logger=dict(type="LoggerHook", interval=2),
                checkpoint=dict(type="AtomicCheckpointHook", interval=10),
                finite_loss=dict(type="FiniteLossHook"),
            ),
            custom_hooks=[dict(type="StepSeedHook"), dict(type="MethodProgressHook")],
            visualizer=dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")]),
            randomness=dict(seed=2),
        )
    )
    config.merge_from_dict({name.replace("__", "."): value for name, value in settings.items()})
    provide_method_data(config)
    return config
