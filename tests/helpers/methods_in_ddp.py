"""Two steps of every method in DistributedDataParallel, one process a rank: methods_in_ddp.py FOLDER RANK WORLD."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import frskd_plugin
from frskd_plugin.check import classification_batch
from frskd_plugin.methods import method_class, method_names

SIZE, CLASSES, BATCH = (3, 64, 64), 10, 4


def settings_of(method: str) -> dict[str, Any]:
    """What a method cannot do without."""
    if method == "kd":
        return {"teacher": timm.create_model("test_resnet", num_classes=CLASSES), "feature_loss": "attention"}
    return {"num_samples": 2 * BATCH} if method == "ps_kd" else {}


def two_steps(method: str, rank: int, factor: float | None = None, **settings: Any) -> dict[str, torch.Tensor]:
    """Name -> gradient of the second step; a parameter without one would stop DDP at its start."""
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=CLASSES)
    model = frskd_plugin.wrap(student, method, input_size=SIZE, **settings_of(method), **settings)
    if factor is not None:
        model.method.loss_distill.factor = factor
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(1 + rank)  # each rank has images of its own
    images, labels, extra = classification_batch(method_class(method).needs, BATCH, SIZE, CLASSES, "cpu")
    for _ in range(2):
        optimizer.zero_grad()
        parallel(images, labels, **extra)["loss"].backward()
        optimizer.step()
    held = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return held | {name: value for name, value in model.named_buffers() if name.endswith("gate.mean")}


def main(folder: str, rank: str, world: str) -> None:
    """Train, and keep what this rank holds at the end."""
    store = f"file://{Path(folder).resolve()}/methods_rendezvous"
    distributed.init_process_group("gloo", init_method=store, rank=int(rank), world_size=int(world))
    held = {method: two_steps(method, int(rank)) for method in method_names()}
    held["warm-up"] = two_steps("frskd", int(rank), factor=0.0, feature_loss="hint")
    torch.save(held, Path(folder) / f"methods_{rank}.pth")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
