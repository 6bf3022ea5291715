"""One training step of the tiny FRSKD segmentor on a rank's part of a batch; rank 0 writes the loss and the gradients.

Outside of a process group it takes the whole batch.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from torch import distributed, nn

from frskd_plugin.mmengine.distributed import SyncBNDataParallel, end_distributed, init_distributed
from tests.helpers.segmentors import make_batch
from tests.helpers.tiny_mmseg import MODELS, tiny_config

BATCH = 4


def joined_step(out: Path) -> None:
    """Write ``{'loss': scalar, 'grads': {name: tensor}}`` to ``out``."""
    parallel = "RANK" in os.environ
    init_distributed("pytorch" if parallel else "none")
    rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if parallel else (0, 1)
    init_default_scope("mmseg")
    torch.manual_seed(0)
    config = tiny_config(Path("unused"), frskd=True)
    config.model.backbone.dropout = 0.0
    config.model.decode_head.dropout_ratio = 0.0
    model = MODELS.build(config.model).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # frozen: batch statistics would differ from those of the joined batch

    images, samples = make_batch(BATCH, size=(24, 24))
    for sample in samples:
        sample.gt_sem_seg.data %= 4
    part = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    wrapped = SyncBNDataParallel(model, device_ids=None, broadcast_buffers=False) if parallel else model
    losses = wrapped(images[part].double(), samples[part], mode="loss")
    loss = sum(value for name, value in losses.items() if "loss" in name)
    loss.backward()
    loss = loss.detach()
    if parallel:
        distributed.all_reduce(loss)
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save({"loss": loss / world_size, "grads": grads}, out)
    end_distributed()
