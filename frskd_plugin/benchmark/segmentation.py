"""A segmentor's training step, plain and with FRSKD, as the configs of the paper describe both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frskd_plugin
from frskd_plugin.benchmark.segmentation_data import DrawnBatches, StepWithData
from frskd_plugin.benchmark.training_step import StepSettings, TrainingStep

SEGMENTORS = ("effdet_d0", "effdet_d1")
DEFAULT_SIZE = 512
DEFAULT_BATCH = 2


class SegmentorLoss(nn.Module):
    """Sum of the losses of an mmseg segmentor."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images: Tensor, data_samples: list[Any]) -> Tensor:
        """Normalised images ``[B, 3, H, W]`` and their samples to a scalar."""
        losses = self.segmentor(images, data_samples, mode="loss")
        return self.segmentor.parse_losses(losses)[0]


def segmentation_steps(name: str, settings: StepSettings) -> tuple[TrainingStep, TrainingStep, int]:
    """The plain step, the FRSKD step, and the batch size.

    Raises:
        ImportError: mmsegmentation is not installed.
    """
    try:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        from frskd_plugin.mmengine.compile_hook import default_parts
    except ImportError as error:
        raise ImportError(
            f"The segmentor {name} needs mmengine and mmsegmentation, which cannot be imported: {error}"
        ) from error

    size, batch = settings.size or DEFAULT_SIZE, settings.batch or DEFAULT_BATCH
    torch.manual_seed(0)
    configs = [read_segmentor(f"{kind}_voc_{name}.py") for kind in ("baseline", "frskd")]
    configs[1].model.self_teacher.update(dict(settings.self_teacher))
    plain, frskd = (SegmentorLoss(build_segmentor(config)) for config in configs)
    num_classes = plain.segmentor.decode_head.num_classes
    images = torch.randn(batch, 3, size, size, device=settings.device).contiguous(memory_format=settings.memory_format)
    samples = []
    for labels in torch.randint(num_classes, (batch, 1, size, size), device=settings.device):
        meta = {"img_shape": (size, size), "ori_shape": (size, size), "pad_shape": (size, size)}
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=meta))
    inputs = (images, samples)
    steps = []
    for network in (plain, frskd):
        parts = [f"segmentor.{name}" for name in default_parts(network.segmentor)]  # as in training with --compile
        steps.append(TrainingStep(network, inputs, settings, parts))
    return steps[0], steps[1], batch


def steps_with_data(
    name: str, settings: StepSettings, steps: Sequence[TrainingStep], batch: int, folder: Path
) -> list[StepWithData]:
    """The same steps, each with the making of its batch out of image files; drawn ones are written to the folder."""
    config = read_segmentor(f"frskd_voc_{name}.py")
    size = settings.size or DEFAULT_SIZE
    return [StepWithData(step, DrawnBatches(config, folder / "VOCdevkit", size, settings), batch) for step in steps]


def read_segmentor(config: str) -> Any:
    """A config file of this project, for random weights.

    Raises:
        FileNotFoundError: The config lies neither beside the package nor in its wheel.
    """
    from mmengine.config import Config

    package = Path(frskd_plugin.__file__).parent
    folders = [package.parent / "configs", package / ".mim" / "configs"]
    file = next((folder / config for folder in folders if (folder / config).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{config} was not found in {' or '.join(map(str, folders))}: install the package anew."
        )
    read = Config.fromfile(file)
    read.model.backbone.pretrained = False
    return read


def build_segmentor(config: Any) -> nn.Module:
    """The model of a config."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    init_default_scope("mmseg")
    return MODELS.build(config.model)
