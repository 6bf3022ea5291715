"""`wrap` and `FRSKDTask` in two processes with gloo: the gradients are those of the joined batch in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from frskd_plugin.methods import method_names
from tests.helpers.joined_classifier_step import joined_gradients

ROOT = Path(__file__).resolve().parents[2]


def run_ranks(script: str, folder: Path) -> None:
    """The script in two processes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, str(folder)]
    ranks = [
        subprocess.Popen([*command, str(rank), "2"], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=300)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """What rank 0 holds after a step of each kind."""
    folder = tmp_path_factory.mktemp("two_processes")
    run_ranks("tests/helpers/joined_classifier_step.py", folder)
    return torch.load(folder / "gradients.pth", weights_only=True)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each rank holds after two steps of each method."""
    folder = tmp_path_factory.mktemp("methods")
    run_ranks("tests/helpers/methods_in_ddp.py", folder)
    return [torch.load(folder / f"methods_{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wrap", "task"])
def test_gradients_equal_the_joined_batch(gradients, kind):
    expected = joined_gradients()
    assert gradients[kind].keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(gradients[kind][name], grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*method_names(), "warm-up"])
def test_every_method_trains_one_model(held, method):
    """DDP starts a second step only where each parameter had a gradient in the first; the ranks agree on all."""
    one, other = (rank[method] for rank in held)
    assert one and one.keys() == other.keys()
    for name, grad in one.items():
        assert grad is not None and grad.isfinite().all(), name
        assert torch.equal(grad, other[name]), name
    assert any(name.endswith("gate.mean") for name in one) is (method in ("frskd", "frskd_sla", "warm-up"))
