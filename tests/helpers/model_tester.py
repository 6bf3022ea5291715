"""One tester for every network: subclass `ModelTester`, say how to make the network and its inputs, inherit the tests.

class TestResNet(ModelTester):
    sizes = (64, 45)

    def make_model(self):
        return TimmFeatureExtractor("resnet18")

    def make_inputs(self, size):
        return (torch.randn(2, 3, size, size),)
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


def tensors(nested: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def without_gradient(model: nn.Module) -> list[str]:
    """Names of the parameters that are trained but got no gradient."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def scalar(outputs: Any) -> Tensor:
    """A loss to which every output contributes."""
    return sum(output.square().mean() for output in tensors(outputs))


def same(first: Any, second: Any) -> bool:
    """Tell if all tensors are bit-equal."""
    pairs = list(zip(tensors(first), tensors(second), strict=True))
    return all(torch.equal(a, b) for a, b in pairs) and bool(pairs)


class ModelTester:
    """The promises that every network of this project keeps."""

    sizes: tuple[int, ...] = (32, 45)  # the second one is odd
    double_tolerance = 1e-4

    def make_model(self) -> nn.Module:
        raise NotImplementedError

    def make_inputs(self, size: int) -> tuple[Any, ...]:
        raise NotImplementedError

    @pytest.fixture
    def inputs(self) -> tuple[Any, ...]:
        torch.manual_seed(1)
        return self.make_inputs(self.sizes[0])

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make_model()

    def test_every_size_trains_every_parameter(self, model: nn.Module) -> None:
        for size in self.sizes:
            model.train().zero_grad()
            outputs = model(*self.make_inputs(size))
            assert all(torch.isfinite(output).all() for output in tensors(outputs))
            scalar(outputs).backward()
            assert without_gradient(model) == []

    def test_inputs_are_left_alone(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept = tree_map_only(Tensor, torch.clone, inputs)
        scalar(model.train()(*inputs)).backward()
        assert same(kept, inputs)

    def test_eval_is_deterministic_and_changes_no_state(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        model.eval()
        state = copy.deepcopy(model.state_dict())
        assert same(model(*inputs), model(*inputs))
        assert not state or same(state, model.state_dict())

    def test_state_dict_loads_strictly(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        torch.manual_seed(123)
        other = self.make_model()
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert same(model.eval()(*inputs), other.eval()(*inputs))

    def test_deepcopy_and_pickle(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        expected = model.eval()(*inputs)
        assert same(expected, copy.deepcopy(model)(*inputs))
        assert same(expected, pickle.loads(pickle.dumps(model))(*inputs))

    def test_float64_agrees(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        outputs = tensors(model.eval()(*inputs))
        double_inputs = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)
        for single, double in zip(outputs, tensors(model.double()(*double_inputs)), strict=True):
            assert double.dtype == torch.float64
            assert (single - double).abs().max() <= self.double_tolerance * max(1.0, double.abs().max().item())
