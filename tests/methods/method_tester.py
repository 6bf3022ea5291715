"""One tester for every method: subclass `MethodTester`, name the method and its settings, inherit the tests.

class TestBYOT(MethodTester):
    method = "byot"

Further forms of a method, which treat their targets alike, inherit from `FormTester`.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import frskd_plugin
from frskd_plugin.core import FRSKDLoss
from frskd_plugin.methods import StudentInfo, make_method, method_settings
from frskd_plugin.timm.cifar_networks import WideResNet
from tests.helpers.model_tester import same, without_gradient

CLASSES = 5
SIZE = (3, 16, 16)
MADE: dict = {}  # models as made, by the class of their test


def make_student(seed=0):
    torch.manual_seed(seed)
    return WideResNet(depth=10, k=1, num_classes=CLASSES)


def wrap(method, **settings):
    return frskd_plugin.wrap(make_student(), method, input_size=SIZE, **settings)


def fake_student(num_levels=2, batch=4, seed=0, **settings):
    """Given maps and logits in float64, as leaves, and the info of a network that would hand them out."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    feats = [leaf(batch, 4 * 2**i, 8 // 2**i, 8 // 2**i) for i in range(num_levels)]
    logits = leaf(batch, CLASSES)
    info = StudentInfo(
        module=torch.nn.Identity(),
        in_channels=[f.shape[1] for f in feats],
        map_sizes=[tuple(f.shape[2:]) for f in feats],
        num_classes=CLASSES,
        macs=10**6,
        input_size=(3, 8, 8),
        **settings,
    )
    return info, feats, logits


def make_double(method, info, **settings):
    torch.manual_seed(3)
    return make_method(method, info, **settings).double()


def ce(logits, targets):
    """Cross-entropy against labels or distributions, written out."""
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    weights = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
    return -(weights * log_p).sum(1).mean()


def kl(target, logits, temperature):
    """``T^2 KL(target || logits)`` of softened predictions, batch mean, written out; the target is a constant."""
    p, q = ((z / temperature).exp() / (z / temperature).exp().sum(1, keepdim=True) for z in (target.detach(), logits))
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


def check_terms(losses, expected):
    """Names and values of the terms, to float64's precision."""
    assert {name for name in losses if name.startswith("loss_")} == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(float(torch.as_tensor(value).detach()), rel=1e-10, abs=1e-14), name


class FormTester:
    method = ""
    settings: dict = {}
    lr = 0.02
    same_batch_again = 2  # further steps on the batch, after which its loss must be lower

    def make(self, **settings):
        """A model of its own, without further settings as a copy: `wrap` runs a student to look at it, slowly."""
        if settings:
            return wrap(self.method, **{**self.settings, **settings})
        if type(self) not in MADE:
            MADE[type(self)] = wrap(self.method, **self.settings)
        return copy.deepcopy(MADE[type(self)])

    def batch(self, size=8):
        """Arguments of the training call."""
        generator = torch.Generator().manual_seed(1)
        targets = torch.arange(size) % (size // 2) % CLASSES
        return (torch.randn(size, *SIZE, generator=generator), targets), {}

    def test_every_parameter_gets_a_gradient_and_steps_lower_the_loss(self):
        model = self.make()
        args, extra = self.batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
        values = []
        for _ in range(1 + self.same_batch_again):
            losses = model(*args, **extra)
            optimizer.zero_grad()
            losses["loss"].backward()
            assert without_gradient(model) == []
            optimizer.step()
            values.append(losses["loss"].item())
        assert values[-1] < values[0]
        assert len(losses["output"]) == len(args[1])

    def test_weights_of_zero_leave_no_parameter_without_gradient(self):
        """DDP stops where one has none, as in a warm-up without distillation."""
        has_layers = self.settings.get("feature_loss", "none") != "none"  # whose weight must not be 0 for good
        names = ["alpha", "weight", "mean_weight", "sla_weight", *([] if has_layers else ["beta"])]
        model = self.make(**{name: 0.0 for name in names if name in method_settings(self.method)})
        for loss in model.modules():
            if isinstance(loss, FRSKDLoss):
                loss.factor = 0.0
        args, extra = self.batch()
        model(*args, **extra)["loss"].backward()
        assert without_gradient(model) == []

    def test_inference_is_the_plain_students_bit_for_bit(self):
        model = self.make()
        args, extra = self.batch()
        model(*args, **extra)["loss"].backward()
        model.eval()
        model.method.forward = lambda *_: pytest.fail("the method ran")
        plain = make_student()
        plain.load_state_dict(frskd_plugin.unwrap(model).state_dict(), strict=True)
        images = torch.randn(2, *SIZE)
        assert torch.equal(model(images), plain.eval()(images))

    def test_state_and_copies_go_on_alike(self):
        model = self.make()
        args, extra = self.batch()
        model(*args, **extra)["loss"].backward()
        state = copy.deepcopy(model.state_dict())
        assert all(key.startswith(("student.", "method.")) for key in state)
        twin = self.make()
        twin.load_state_dict(state, strict=True)
        others = [twin, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        (expected,) = {self.fresh_loss(model, args, extra)}
        assert [self.fresh_loss(other, args, extra) for other in others] == [expected] * 3

    def fresh_loss(self, model, args, extra):
        """Loss of a step that depends on saved state alone."""
        torch.manual_seed(5)
        return model(*args, **extra)["loss"].item()


class MethodTester(FormTester):
    def test_student_is_untouched(self):
        student, twin = make_student(), make_student()
        model = frskd_plugin.wrap(student, self.method, input_size=SIZE, **self.settings)
        assert frskd_plugin.unwrap(model) is student and same(student.state_dict(), twin.state_dict())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())

    def loss_of(self, model, args, extra):
        """Total of a training step on a fresh copy, so that no state of the step before enters."""
        torch.manual_seed(5)
        return copy.deepcopy(model)(*args, **extra)["loss"]

    def test_images_of_the_ignored_label_are_left_out_or_refused(self):
        (images, targets), extra = self.batch()
        targets[[1, len(targets) // 2 + 1]] = -100
        model = self.make()
        if self.method == "cs_kd":
            with pytest.raises(ValueError, match="pairs images of one class, and some of the batch have no label"):
                model(images, targets, **extra)
            return
        losses = model(images, targets, **extra)
        if self.method != "ddgsd":  # the sum of two views, the other of which is not handed out
            expected = F.cross_entropy(losses["output"], targets)
            if self.method == "label_smoothing":
                expected = F.cross_entropy(losses["output"], targets, label_smoothing=model.method.smoothing)
            torch.testing.assert_close(losses["loss_ce"], expected)
        if not model.method.makes_soft_targets:  # torch: ignore_index=255 is not for soft labels
            model = self.make(criterion=torch.nn.CrossEntropyLoss(ignore_index=255))
            other = self.loss_of(model, (images, targets.masked_fill(targets == -100, 255)), extra)
            torch.testing.assert_close(other, self.loss_of(self.make(), (images, targets), extra))

    def test_multi_label_targets_train_by_a_sigmoid(self):
        (images, targets), extra = self.batch()
        if self.method in ("sla_sd", "frskd_sla"):
            with pytest.raises(ValueError, match="cannot make soft labels by a sigmoid .* joint classifier"):
                self.make(criterion=torch.nn.BCEWithLogitsLoss())
            return
        model = self.make(criterion=torch.nn.BCEWithLogitsLoss())
        multi = F.one_hot(targets, CLASSES) | F.one_hot((targets + 1) % CLASSES, CLASSES)
        expected = self.loss_of(model, (images, multi.float()), extra)
        assert self.loss_of(model, (images, multi), extra) == expected  # integers too
        soft_label = getattr(model.method, "soft_label_loss", None)
        assert soft_label is None or soft_label.soft_label == "sigmoid"
        losses = model(images, multi.float(), **extra)
        losses["loss"].backward()
        assert without_gradient(model) == []
        if "loss_kd" in losses and self.method != "dlb":  # DLB knows nothing of the first batch
            assert losses["loss_kd"] > 0
