"""`wrap` and `FRSKDTask` in two processes with gloo: the gradients are those of the joined batch in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.joined_classifier_step import joined_gradients

ROOT = Path(__file__).resolve().parents[2]
STEP = "tests/helpers/joined_classifier_step.py"


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """What rank 0 holds after a step of each kind."""
    folder = tmp_path_factory.mktemp("two_processes")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, STEP, str(folder), str(rank), "2"], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
    return torch.load(folder / "gradients.pth", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wrap", "task"])
def test_gradients_equal_the_joined_batch(gradients, kind):
    expected = joined_gradients()
    assert gradients[kind].keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(gradients[kind][name], grad, rtol=1e-10, atol=1e-12, msg=name)
