"""Parts of a model run compiled in training and as they are in eval mode, and nothing else of the model changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from frskd_plugin.core.compiled_parts import CompiledParts


class Backend:
    """Backend that counts how often a compiled graph runs."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]):
        def run(*args: Tensor):
            self.calls += 1
            return graph.forward(*args)

        return run


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))
        self.heads = nn.ModuleList([nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)])

    def forward(self, x: Tensor) -> Tensor:
        feats = self.neck(x)
        return sum(head.forward(feats) for head in self.heads)  # mmseg calls its heads like this


@pytest.fixture
def model() -> Net:
    torch._dynamo.reset()  # it compiles the code of a class a few times only
    torch.manual_seed(0)
    return Net().train()


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_training_runs_compiled_with_the_same_gradients(model: Net) -> None:
    x, plain = torch.randn(2, 2, 4, 4), copy.deepcopy(model)
    backend = Backend()
    CompiledParts(model, ["neck", "heads"], backend=backend)
    for actual, expected in zip(gradients(model, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)  # no bits: dynamo may choose other kernels
    assert backend.calls == 3  # the neck and each of the two heads
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(model.neck[1].running_mean, plain.neck[1].running_mean)


def test_eval_mode_a_block_and_restore_run_as_they_are(model: Net) -> None:
    x, backend = torch.randn(2, 2, 4, 4), Backend()
    compiled = CompiledParts(model, ["neck", "heads.1", "neck"], backend=backend)  # once, though named twice
    model.eval()(x)
    model.train()
    with compiled.disabled():
        model(x)
    assert backend.calls == 0
    model(x)
    assert backend.calls == 2
    compiled.restore()
    model(x)
    assert backend.calls == 2 and not any("forward" in vars(module) for module in model.modules())
    with pytest.raises(ValueError, match=r"Net has no part 'backbone' to compile.*such as neck, heads"):
        CompiledParts(model, ["backbone"])


@pytest.mark.parametrize(("part", "any_size", "calls"), [("neck", False, 2), ("neck", True, 3), ("", False, 2)])
def test_other_sizes_run_as_they_are_unless_all_are_asked_for(
    model: Net, part: str, any_size: bool, calls: int
) -> None:
    backend = Backend()
    CompiledParts(model, [part], backend=backend, any_size=any_size)
    for batch in (2, 3, 2):
        model(torch.randn(batch, 2, 4, 4))
    assert backend.calls == calls


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_runs_its_own_weights_as_they_are(model: Net, copied: Callable[[Net], Net]) -> None:
    x, backend = torch.randn(2, 2, 4, 4), Backend()
    CompiledParts(model, ["neck"], backend=backend)
    other = copied(model)
    nn.init.zeros_(other.neck[1].weight)
    nn.init.ones_(other.neck[1].bias)
    assert torch.equal(other.neck(x), torch.ones(2, 4, 4, 4)) and backend.calls == 0
    assert not torch.equal(model.neck(x), torch.ones(2, 4, 4, 4)) and backend.calls == 1
