"""One training step of a wrapped toy classifier on a rank's part of a batch; rank 0 writes the gradients.

Arguments: a folder, the rank, and how many processes there are. Imported, it gives the step on the whole batch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import frskd_plugin
from tests.helpers.toy_classifier import ToyClassifier, toy_batch

BATCH = 8


def make_model() -> nn.Module:
    """In float64; batch norm in eval mode, as batch statistics would differ from those of the joined batch."""
    torch.manual_seed(0)
    model = frskd_plugin.wrap(ToyClassifier(batch_norm=False).double(), alpha=2, beta=100, width=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Gradient of each parameter by its name."""
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def joined_gradients() -> dict[str, Tensor | None]:
    """Of the whole batch, in one process."""
    model = make_model()
    images, targets = toy_batch(BATCH)
    model(images.double(), targets)["loss"].backward()
    return gradients(model)


def wrapped_step(images: Tensor, targets: Tensor) -> nn.Module:
    """DistributedDataParallel around what `wrap` made."""
    model = make_model()
    parallel = DistributedDataParallel(model)  # kept: it brings the gradients together as long as it lives
    parallel(images, targets)["loss"].backward()
    return model


def task_step(images: Tensor, targets: Tensor) -> nn.Module:
    """The task, in two parts: gradients of the first stay on their rank, those of the second bring both together."""
    model = make_model()
    task = frskd_plugin.FRSKDTask(model, verbose=False).prepare_distributed()
    half = len(images) // 2
    with task.no_sync():
        (task(images[:half], targets[:half])["loss"] / 2).backward()
    kept = [p.grad.clone() for p in model.parameters()]
    gathered = [torch.empty_like(kept[0]) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, kept[0])
    if torch.equal(gathered[0], gathered[1]):
        raise RuntimeError("no_sync() brought the gradients of the ranks together.")
    (task(images[half:], targets[half:])["loss"] / 2).backward()
    return model


def main(folder: Path, rank: int, world_size: int) -> None:
    """Write ``{'wrap': gradients, 'task': gradients}`` to ``gradients.pth``."""
    store = distributed.FileStore(str(folder / "store"), world_size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    images, targets = toy_batch(BATCH)
    part = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    steps = {"wrap": wrapped_step, "task": task_step}
    grads = {name: gradients(step(images[part].double(), targets[part])) for name, step in steps.items()}
    if rank == 0:
        torch.save(grads, folder / "gradients.pth")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
