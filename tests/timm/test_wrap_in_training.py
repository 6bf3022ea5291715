"""A wrapped model inside what users train with: Mixup, their own losses, frozen layers, compile, AMP, EMA, FSDP."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import freeze
from torch import distributed
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import frskd_plugin
import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from tests.helpers.model_tester import same, without_gradient
from tests.helpers.toy_classifier import NUM_CLASSES, ToyClassifier, toy_batch


def make(student=None, width=1, **settings):
    torch.manual_seed(0)
    return frskd_plugin.wrap(ToyClassifier() if student is None else student, width=width, **settings)


def make_timm(name="wrn_16_2", size=32, **kwargs):
    """A model of timm's registry and a batch for it."""
    torch.manual_seed(0)
    student = timm.create_model(name, num_classes=NUM_CLASSES, **kwargs)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, size, size, generator=generator)
    return make(student, input_size=(3, size, size)), (images, torch.tensor([0, 1, 2, 0]))


def step(model, images, targets):
    """Losses and gradients of one step."""
    model.zero_grad()
    losses = model(images, targets)
    losses["loss"].backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(found, expected, **tolerance):
    (losses, grads), (expected_losses, expected_grads) = found, expected
    assert list(losses) == list(expected_losses)
    for name, value in expected_losses.items():
        torch.testing.assert_close(losses[name], value, **tolerance, msg=name)
    grads = {name.removeprefix("_orig_mod."): grad for name, grad in grads.items()}
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, **tolerance, msg=name)


def test_frozen_layers_stay_as_they_are_and_the_rest_trains():
    student = ToyClassifier()
    student.stem.requires_grad_(False)
    student.norm.requires_grad_(False).eval()
    frozen = [student.stem, student.norm]
    before = copy.deepcopy(frozen)
    model = make(student)
    assert not student.norm.training and student.body.training and model.training
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.01)
    start = copy.deepcopy(model.state_dict())
    for seed in range(2):
        step(model, *toy_batch(seed=seed))
        optimizer.step()
    assert all(p.grad is None for module in frozen for p in module.parameters())
    assert all(same(module.state_dict(), kept.state_dict()) for module, kept in zip(frozen, before, strict=True))
    assert without_gradient(model) == []
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(not torch.equal(start[name], model.state_dict()[name]) for name in trained)


def test_a_self_teacher_frozen_by_timm_teaches_and_stays_as_it_is():
    model = make()
    freeze(model.method)  # its batch normalisations become FrozenBatchNorm2d
    before = copy.deepcopy(model.method.self_teacher.state_dict())
    images, targets = toy_batch()
    losses, gradients = step(model, images, targets)
    assert {name.partition(".")[0] for name in gradients} == {"student"}
    assert same(model.method.self_teacher.state_dict(), before)
    running = copy.deepcopy(model.method).eval().self_teacher
    feats, _ = model.student_forward(images)
    torch.testing.assert_close(losses["teacher_output"], running(feats)[1])


class TestOptimizerGroups:
    """timm's optimizer factory asks a model which parameters are special; the wrapped model answers for its student."""

    def test_weight_decay_leaves_out_what_the_student_leaves_out(self):
        model, _ = make_timm("test_vit", img_size=32)
        optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=0.2)
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert model.student.no_weight_decay() >= {"pos_embed"}
        assert decay[id(model.student.pos_embed)] == 0
        assert decay[id(model.student.head.weight)] == decay[id(model.method.self_teacher.head.weight)] == 0.2

    @pytest.mark.parametrize("make_model", [lambda: make_timm("test_vit", img_size=32)[0], make])
    def test_layer_decay_is_the_students_and_the_teacher_learns_at_full_rate(self, make_model):
        model = make_model()
        scales = [
            {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
            for optimizer in (
                create_optimizer_v2(module, opt="sgd", lr=0.1, weight_decay=0.2, layer_decay=0.5)
                for module in (model, model.student)
            )
        ]
        assert len(set(scales[1].values())) > 1
        assert {key: scales[0][key] for key in scales[1]} == scales[1]
        assert {scales[0][id(p)] for p in model.method.parameters()} == {1.0}


def test_compiled_step_and_eval_equal_eager_and_other_weights_are_not_compiled_anew():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model, other = make(), make()
    compiled, batch = torch.compile(other, backend=counter), toy_batch()
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert_same_step(step(compiled, *batch), step(model, *batch), **close)
    torch.testing.assert_close(compiled.eval()(batch[0]), model.eval()(batch[0]))
    frames, values = counter.frame_count, []
    for epoch in range(1, 4):
        for module in (other, model):
            loss = module.train().method.loss_distill
            loss.factor, loss.alpha, loss.beta = epoch / 4, epoch, 1 + epoch
            loss.gate.mean.fill_(0.5 / epoch)
        found = step(compiled, *batch)
        assert_same_step(found, step(model, *batch), **close)
        values.append(found[0]["loss_feat"].item())
    assert counter.frame_count == frames and len(set(values)) == 3


class TestLayoutAndPrecision:
    def test_channels_last_gives_the_same_step(self):
        model, (images, targets) = make_timm()
        model, images = model.double(), images.double()  # the layouts add up in another order
        other = copy.deepcopy(model).to(memory_format=torch.channels_last)
        found = step(other, images.to(memory_format=torch.channels_last), targets)
        assert_same_step(found, step(model, images, targets), rtol=1e-6, atol=1e-9)
        assert other.student.stem.weight.is_contiguous(memory_format=torch.channels_last)

    def test_autocast_computes_the_distillation_in_float32(self):
        model, (images, targets) = make_timm()
        expected = model(images, targets)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(images, targets)
        assert losses["output"].dtype == torch.bfloat16
        assert losses["loss_kd"].dtype == losses["loss_feat"].dtype == torch.float32
        for name in ("loss", "loss_ce", "loss_teacher_ce", "loss_feat"):
            torch.testing.assert_close(losses[name].float(), expected[name], rtol=0.03, atol=0.03, msg=name)
        losses["loss"].backward()
        assert without_gradient(model) == []
        assert all(p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize(("name", "kwargs"), [("test_vit", {"img_size": 32}), ("test_resnet", {})])
    def test_checkpointed_activations_of_timm_models(self, name, kwargs):
        model, (images, targets) = make_timm(name, **kwargs)
        expected = step(copy.deepcopy(model), images, targets)
        model.student.set_grad_checkpointing()
        assert_same_step(step(model, images, targets), expected)


@pytest.mark.parametrize("sharded", [("student.body", ""), ("student", ""), ("student",)])
def test_fully_sharded_step_equals_the_plain_one(process_group, sharded):
    """FSDP2 around blocks, the whole, or the student alone; one process shows the path, not the communication."""
    expected = step(make(), *toy_batch())
    model = make()
    student, mesh = model.student, distributed.init_device_mesh("cpu", (1,))
    for name in sharded:
        fully_shard(model.get_submodule(name), mesh=mesh)
    assert all(isinstance(p, DTensor) for p in (model if "" in sharded else student.body).parameters())
    losses, grads = step(model, *toy_batch())
    grads = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}
    assert_same_step((losses, grads), expected)
    assert model.eval()(toy_batch()[0]).shape == (4, NUM_CLASSES)
    assert frskd_plugin.unwrap(model) is student
