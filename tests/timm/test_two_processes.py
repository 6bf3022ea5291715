"""`wrap` and `FRSKDTask` in two processes with gloo: the gradients are those of the joined batch in one process."""

from __future__ import annotations

import pytest
import torch

from frskd_plugin.methods import method_names
from tests.helpers.two_process_steps import Held, joined_gradients, train_in_two_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Held]]:
    return train_in_two_processes(tmp_path_factory.mktemp("two_processes"))


@pytest.mark.parametrize("kind", ["wrap", "task"])
def test_gradients_equal_the_joined_batch(held, kind):
    found, expected = held[0][kind], joined_gradients()
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
