"""ONE: branches of the last stage, their gate, and what cannot be cut."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

import frskd_plugin
from frskd_plugin.methods.one import ensemble_logits, find_last_stage, run_branch
from tests.methods.method_tester import MethodTester, ce, check_terms, kl


class TestONE(MethodTester):
    method = "one"

    def test_loss_is_the_formula(self):
        model = self.make(temperature=2, weight=0.5).double()
        model.method.set_progress(20, 200)
        (images, targets), _ = self.batch()
        images = images.double()
        logits = copy.deepcopy(model).student(images)
        twin = copy.deepcopy(model)
        losses = model(images, targets)
        student, method = twin.student, twin.method
        shared = student.group2(student.group1(student.stem(images)))
        every = [student.forward_head(student.rectify(student.group3(shared), 2))]
        torch.testing.assert_close(every[0], logits)
        for branch in method.branches:
            every.append(branch.fc(F.relu(branch.norm(branch.group3(shared))).mean((2, 3))))
        x = shared.mean((2, 3)) @ method.gate.linear.weight.T
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        gates = x.clamp_min(0).exp() / x.clamp_min(0).exp().sum(1, keepdim=True)
        ensemble = sum(gates[:, i : i + 1] * every[i] for i in range(3))
        weight = 0.5 * torch.tensor(-5 * (1 - 20 / 80) ** 2, dtype=torch.float64).exp()
        check_terms(
            losses,
            {
                "loss_ce": ce(every[0], targets),
                "loss_branch_ce": ce(every[1], targets) + ce(every[2], targets),
                "loss_ensemble_ce": ce(ensemble, targets),
                "loss_kd": weight * sum(kl(ensemble, z, 2) for z in every),
            },
        )
        losses["loss_kd"].backward()
        assert all(p.grad is None for p in model.method.gate.parameters())  # the ensemble is a constant there

    def test_the_ensemble_is_the_teacher_in_validation(self):
        model = self.make().eval()
        images = self.batch()[0][0]
        shared = model.student.group2(model.student.group1(model.student.stem(images)))
        every = torch.stack([model(images), *(run_branch(branch, shared) for branch in model.method.branches)], dim=1)
        expected = (model.method.gate(shared).unsqueeze(2) * every).sum(1)
        torch.testing.assert_close(model.teacher_logits(images), expected)

    def test_branches_differ_from_the_student_and_from_each_other(self):
        model = self.make()
        weights = [m.group3.block0.conv1.weight for m in (model.student, *model.method.branches)]
        first, *others = [w.flatten() for w in weights]
        assert all(torch.equal(first.sort().values, other.sort().values) for other in others)
        assert not torch.equal(first, others[0]) and not torch.equal(others[0], others[1])
        assert "last_stage='group3'" in repr(model.method)

    def test_the_students_pass_runs_once_and_a_student_that_changed_is_noticed(self):
        model = copy.deepcopy(self.make())
        assert model.method._stage[0] is model.student.group3  # its own copy's
        counts = []
        model.student.group1.register_forward_hook(lambda *_: counts.append(1))
        model(*self.batch()[0])
        assert counts == [1]
        model.student.group3 = copy.deepcopy(model.student.group3)
        with pytest.raises(RuntimeError, match="'group3', which ran 0 times: wrap the network again"):
            model(*self.batch()[0])


def test_a_masked_class_leaves_gradients_finite():
    branch_logits = torch.randn(4, 3, 5)
    branch_logits[..., 2] = -torch.inf
    gates = torch.rand(4, 3, requires_grad=True)
    F.cross_entropy(ensemble_logits(gates, branch_logits), torch.tensor([0, 1, 3, 4])).backward()
    kept = gates.detach().requires_grad_()
    F.cross_entropy(ensemble_logits(kept, branch_logits[..., [0, 1, 3, 4]]), torch.tensor([0, 1, 2, 3])).backward()
    torch.testing.assert_close(gates.grad, kept.grad)


CUTS = {"test_resnet": "layer4", "test_efficientnet": "blocks.4", "test_convnext": "stages.3", "resnet18": "layer4"}


@pytest.mark.parametrize("name", CUTS)
def test_copies_give_the_networks_own_logits(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=5)
    size = (3, 64, 64)
    images = torch.randn(2, *size)
    stage, channels, branch = find_last_stage(network, images)
    assert stage == CUTS[name]
    given = []
    network.get_submodule(stage).register_forward_pre_hook(lambda _, args: given.append(args[0].clone()))
    logits = network.eval()(images)
    torch.testing.assert_close(run_branch(branch.eval(), given[0]), logits)
    assert given[0].shape[1] == channels
    assert 0 < sum(p.numel() for p in branch.parameters()) < sum(p.numel() for p in network.parameters())


def test_a_network_without_a_last_stage_is_refused_by_name():
    model = timm.create_model("test_vit", num_classes=5)
    with pytest.raises(ValueError, match="VisionTransformer has no last stage that can be copied: .*Use another"):
        frskd_plugin.wrap(model, "one", input_size=(3, 160, 160))
