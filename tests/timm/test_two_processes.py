"""`wrap` and `FRSKDTask` in two processes with gloo: the gradients are those of the joined batch in one process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import frskd_plugin
import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.check import classification_batch
from frskd_plugin.methods import method_class, method_names
from tests.helpers.processes import in_two_processes
from tests.helpers.toy_classifier import ToyClassifier, toy_batch

pytestmark = pytest.mark.slow
RANKS, BATCH = 2, 8
SIZE, CLASSES = (3, 16, 16), 10
Held = dict[str, Tensor]


def make_model() -> nn.Module:
    """Make a model in float64; batch norm in eval mode, as batch statistics would differ from the joined batch's."""
    torch.manual_seed(0)
    model = frskd_plugin.wrap(ToyClassifier(batch_norm=False).double(), alpha=2, beta=100, width=2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def gradients(model: nn.Module) -> Held:
    """Gradient of each parameter by its name, and the gate's state."""
    held = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return held | {name: value for name, value in model.named_buffers() if name.endswith("gate.mean")}


def wrapped_step(images: Tensor, targets: Tensor, outer: Callable[[nn.Module], nn.Module]) -> Held:
    """A step of what `wrap` made, inside of another module."""
    model = make_model()
    parallel = outer(model)  # kept: DDP brings the gradients together as long as it lives
    parallel(images, targets)["loss"].backward()
    return gradients(model)


def task_step(images: Tensor, targets: Tensor) -> Held:
    """The task, in two parts: gradients of the first stay on their rank, those of the second bring both together."""
    model = make_model()
    task = frskd_plugin.FRSKDTask(model, verbose=False).prepare_distributed()
    half = len(images) // 2
    with task.no_sync():
        (task(images[:half], targets[:half])["loss"] / 2).backward()
    kept = next(model.parameters()).grad.clone()
    gathered = [torch.empty_like(kept) for _ in range(RANKS)]
    distributed.all_gather(gathered, kept)
    if torch.equal(gathered[0], gathered[1]):
        raise RuntimeError("no_sync() brought the gradients of the ranks together.")
    (task(images[half:], targets[half:])["loss"] / 2).backward()
    return gradients(model)


def make_student() -> nn.Module:
    """Return a network with a last stage to copy."""
    return timm.create_model("wrn_16_2", num_classes=CLASSES, depth=10, k=1)


def two_steps(method: str, rank: int, factor: float | None = None, **settings: Any) -> Held:
    """Take two steps; a parameter without a gradient in the first would stop DDP at the start of the second."""
    torch.manual_seed(0)
    if method == "kd":
        settings = {"teacher": make_student(), "feature_loss": "attention"}
    elif method == "ps_kd":
        settings = {"num_samples": BATCH}
    model = frskd_plugin.wrap(make_student(), method, input_size=SIZE, **settings)
    if factor is not None:
        model.method.loss_distill.factor = factor
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(1 + rank)  # each rank has images of its own
    images, labels, extra = classification_batch(method_class(method).needs, BATCH // RANKS, SIZE, CLASSES, "cpu")
    for _ in range(2):
        optimizer.zero_grad()
        parallel(images, labels, **extra)["loss"].backward()
        optimizer.step()
    return gradients(model)


def _train(folder: Path) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    images, targets = (part.chunk(RANKS)[rank] for part in toy_batch(BATCH))
    held = {"wrap": wrapped_step(images.double(), targets, DistributedDataParallel)}
    with suppress(ImportError, AttributeError):  # a timm without tasks that keep state skips the test of the task
        held["task"] = task_step(images.double(), targets)
    held |= {method: two_steps(method, rank) for method in method_names()}
    held["warm-up"] = two_steps("frskd", rank, factor=0.0, feature_loss="hint")
    torch.save(held, folder / f"{rank}.pth")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Held]]:
    """Gradients on each rank after a step of each kind, and after two steps of each method."""
    folder = tmp_path_factory.mktemp("two_processes")
    in_two_processes(_train, folder)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("kind", ["wrap", "task"])
def test_gradients_equal_the_joined_batch(held, kind):
    images, targets = toy_batch(BATCH)
    found, expected = held[0][kind], wrapped_step(images.double(), targets, lambda model: model)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("method", [*method_names(), "warm-up"])
def test_every_method_trains_one_model(held, method):
    """DDP starts a second step only where each parameter had a gradient in the first; the ranks agree on all."""
    one, other = (rank[method] for rank in held)
    assert one and one.keys() == other.keys()
    for name, grad in one.items():
        assert grad is not None and grad.isfinite().all(), name
        assert torch.equal(grad, other[name]), name
    assert any(name.endswith("gate.mean") for name in one) is (method in ("frskd", "frskd_sla", "warm-up"))
