"""Methods of one network and a few extra layers: loss as written out, gradients, refusals."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import frskd_plugin
from frskd_plugin.methods.sad import attention_distance
from frskd_plugin.methods.sla_sd import rotate_images
from frskd_plugin.methods.targets import choose_soft_label, soft_loss
from frskd_plugin.timm.cifar_networks import WideResNet
from tests.methods.method_tester import (
    CLASSES,
    SIZE,
    FormTester,
    MethodTester,
    ce,
    check_terms,
    fake_student,
    kl,
    make_double,
)

TARGETS = torch.tensor([1, 3, 0, 3])


def test_soft_labels_of_a_masked_class_are_the_labels_of_the_others():
    logits, others = torch.randn(4, CLASSES), [c for c in range(CLASSES) if c != 2]
    expected = F.cross_entropy(logits[:, others], torch.tensor([others.index(label) for label in TARGETS.tolist()]))
    logits[:, 2] = -torch.inf
    loss = soft_loss(F.cross_entropy, logits.requires_grad_(), TARGETS, lambda soft: soft)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert logits.grad.isfinite().all()


class TargetsTester(MethodTester):
    """Checks of targets that `wrap` makes for all methods, with labels as they come and made soft."""

    def test_labels_of_any_integer_type_mean_the_same(self):
        model = self.make()
        (images, targets), extra = self.batch()
        expected = self.loss_of(model, (images, targets), extra)
        for dtype in (torch.uint8, torch.int32):
            assert self.loss_of(model, (images, targets.to(dtype)), extra) == expected

    def test_targets_that_fit_no_cross_entropy_are_refused(self):
        model = self.make()
        (images, targets), extra = self.batch()
        for wrong, message in (
            (targets + CLASSES, rf"Labels must be classes 0..{CLASSES - 1} .* got {CLASSES}"),
            (targets - 1, "Labels must be classes .* got -1"),
            (targets[:-2], r"a target for each of the \d+ images, got \[\d+\]"),
            (targets.float(), r"takes labels \[B\] \(integers\) or soft labels"),
            (F.one_hot(targets, CLASSES + 1).float(), r"got torch.float32 \[\d+, 6\]"),
            (targets.tolist(), "Targets are a tensor, .* got list"),
        ):
            with pytest.raises((ValueError, TypeError), match=message):
                model(images, wrong, **extra)
        with pytest.raises(ValueError, match="The batch is empty"):
            model(images[:0], targets[:0], **extra)
        with pytest.raises(ValueError, match=r"`loss_\w*` must be a scalar tensor, got shape .*reduction='mean'"):
            self.make(criterion=torch.nn.CrossEntropyLoss(reduction="none"))(images, targets, **extra)

    def test_one_logit_trains_by_a_sigmoid_alone(self):
        (images, targets), _ = self.batch()
        student = WideResNet(depth=10, k=1, num_classes=1)
        with pytest.raises(ValueError, match="cross-entropy of one logit .* is always 0"):
            frskd_plugin.wrap(student, self.method, input_size=SIZE)
        model = frskd_plugin.wrap(student, self.method, input_size=SIZE, criterion=torch.nn.BCEWithLogitsLoss())
        assert model(images, (targets % 2).float()[:, None])["loss"].isfinite()


@pytest.mark.parametrize(
    ("classes", "criterion", "soft_label", "chosen"),
    [
        (1, None, "auto", "sigmoid"),
        (1, torch.nn.MSELoss(), "sigmoid", "sigmoid"),
        (1, torch.nn.MSELoss(), "auto", r"One logit \(num_classes=1\) .* criterion MSELoss does not say"),
        (1, None, "softmax", r"One logit \(num_classes=1\) .* soft_label='softmax' does not say"),
        (CLASSES, torch.nn.BCEWithLogitsLoss(), "auto", "sigmoid"),
        (CLASSES, torch.nn.BCEWithLogitsLoss(), "softmax", "softmax"),
        (CLASSES, torch.nn.MSELoss(), "auto", "softmax"),
    ],
)
def test_soft_labels_are_made_as_the_criterion_makes_probabilities(classes, criterion, soft_label, chosen):
    info = dataclasses.replace(fake_student()[0], num_classes=classes, criterion=criterion)
    if chosen in ("softmax", "sigmoid"):
        assert choose_soft_label(soft_label, info) == chosen
    else:
        with pytest.raises(ValueError, match=chosen):
            choose_soft_label(soft_label, info)


class TestBaseline(TargetsTester):
    method = "baseline"


class TestLabelSmoothing(TargetsTester):
    method = "label_smoothing"

    def test_loss_is_the_formula(self):
        info, feats, logits = fake_student()
        method = make_double(self.method, info, smoothing=0.2)
        y = F.one_hot(TARGETS, CLASSES).double()
        for targets, hard in ((TARGETS, y), (y.flip(0), y.flip(0))):
            losses = method(lambda _: (feats, logits), None, targets, F.cross_entropy)
            check_terms(losses, {"loss_ce": ce(logits, 0.8 * hard + 0.2 / CLASSES)})


class TestSAD(MethodTester):
    method = "sad"
    settings = {"weight": 10.0}

    def test_loss_is_the_formula(self):
        info, feats, logits = fake_student(num_levels=3)
        method = make_double(self.method, info, weight=0.3)
        losses = method(lambda _: (feats, logits), None, TARGETS, F.cross_entropy)
        expected = 0.0
        for f, g in zip(feats, feats[1:], strict=False):
            size = tuple(f.shape[2:])
            energies = [(f**2).sum(1, keepdim=True), F.interpolate((g**2).sum(1, keepdim=True), size, mode="bilinear")]
            a, b = (e.flatten(1).exp() / e.flatten(1).exp().sum(1, keepdim=True) for e in energies)
            expected = expected + ((a - b) ** 2).mean()
        check_terms(losses, {"loss_ce": ce(logits, TARGETS), "loss_attention": 0.3 * expected})
        losses["loss_attention"].backward()
        assert [f.grad is None for f in feats] == [False, False, True] and logits.grad is None

    def test_deeper_map_may_be_the_larger_one(self):
        f, g = torch.randn(2, 3, 2, 2).requires_grad_(), torch.randn(2, 3, 4, 4).requires_grad_()
        attention_distance(f, g).backward()
        assert f.grad is not None and g.grad is None

    def test_starts_at_its_epoch(self):
        model = self.make(start_epoch=3)
        args, _ = self.batch()
        model.method.set_progress(2, 10)
        assert model(*args)["loss_attention"] == 0
        model.method.set_progress(3, 10)
        assert model(*args)["loss_attention"] > 0


class TestBYOT(MethodTester):
    method = "byot"

    @pytest.mark.parametrize("form", ["reimplementation", "authors"])
    def test_loss_is_the_formula(self, form):
        info, feats, logits = fake_student(num_levels=3)
        settings = {"alpha": 0.3, "beta": 0.01} if form == "reimplementation" else {}  # 0.3 and 0.03
        method = make_double(self.method, info, temperature=2, form=form, **settings)
        losses = method(lambda _: (feats, logits), None, TARGETS, F.cross_entropy)
        deepest = feats[-1].mean((2, 3)).detach()
        assert all(h.bottleneck(f).shape == feats[-1].shape for h, f in zip(method.heads, feats, strict=False))
        early = [(p := h.bottleneck(f).mean((2, 3)), h.fc(p)) for h, f in zip(method.heads, feats, strict=False)]
        assert len(early) == 2
        soft, squared = sum(kl(logits, z, 2) for _, z in early), [((p - deepest) ** 2).sum() for p, _ in early]
        check_terms(
            losses,
            {
                "loss_ce": ce(logits, TARGETS),
                "loss_early_ce": 0.7 * sum(ce(z, TARGETS) for _, z in early),
                "loss_kd": 0.3 * soft / (1 if settings else 4),
                "loss_feat": 0.01 * sum(squared) if settings else 0.03 * sum(x.sqrt() for x in squared),
            },
        )
        (losses["loss_kd"] + losses["loss_feat"]).backward()
        assert logits.grad is None and feats[2].grad is None and feats[0].grad is not None


class TestBYOTOfTheAuthors(FormTester):
    method = "byot"
    settings = {"form": "authors"}

    def test_branches_are_two_separable_convolutions_for_each_stage_that_follows(self):
        method = make_double(self.method, fake_student(num_levels=3)[0], form="authors")
        for head, stages in zip(method.heads, (2, 1), strict=True):
            convs = [m for m in head.bottleneck if isinstance(m, torch.nn.Conv2d)]
            assert [c.groups == c.in_channels for c in convs] == [True, False] * 2 * stages


class TestSLASD(MethodTester):
    method = "sla_sd"

    def test_loss_is_the_formula(self):
        info, feats, all_logits = fake_student(batch=16)
        method = make_double(self.method, info, weight=0.5, temperature=2)
        seen = []
        losses = method(
            lambda images: (seen.append(images), (feats, all_logits))[1],
            images := torch.randn(4, 3, 8, 8),
            TARGETS,
            F.cross_entropy,
        )
        joint = feats[-1].mean((2, 3)) @ method.joint_head.weight.T + method.joint_head.bias
        agg = torch.stack([joint[4 * b + k, k::4] for b in range(4) for k in range(4)]).view(4, 4, CLASSES).mean(1)
        labels = torch.tensor([4 * y + k for y in TARGETS.tolist() for k in range(4)])
        logits = all_logits[::4]
        check_terms(
            losses,
            {
                "loss_ce": ce(logits, TARGETS),
                "loss_joint_ce": ce(joint, labels),
                "loss_kd": 0.5 * kl(agg, logits, 2),
            },
        )
        assert torch.equal(seen[0], rotate_images(images)) and torch.equal(losses["output"], logits)
        losses["loss_kd"].backward()
        assert method.joint_head.weight.grad is None and feats[-1].grad is None
        assert [bool(row.any()) for row in all_logits.grad] == [True, False, False, False] * 4

    def test_soft_labels_of_one_hot_equal_labels(self):
        model = self.make()
        (images, targets), _ = self.batch()
        soft = F.one_hot(targets, CLASSES).float()
        torch.testing.assert_close(model(images, soft)["loss"], model(images, targets)["loss"])

    def test_channels_last_stays(self):
        images = torch.randn(2, 3, 8, 8)
        rotated = rotate_images(images.contiguous(memory_format=torch.channels_last))
        assert rotated.is_contiguous(memory_format=torch.channels_last) and torch.equal(rotated, rotate_images(images))

    def test_images_that_are_not_square_are_refused(self):
        with pytest.raises(ValueError, match=r"need square images \[B, C, S, S\], got \[2, 3, 16, 12\]"):
            rotate_images(torch.randn(2, 3, 16, 12))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("label_smoothing", {"smoothing": 1}, "`smoothing` is a share of the label .*got 1"),
        ("sad", {"start_epoch": -2}, "`start_epoch` counts epochs from 0, got -2"),
        ("byot", {"alpha": 2}, "`alpha` is the share of the soft labels .*got 2"),
        ("byot", {"form": "paper"}, "`form` must be one of 'reimplementation', 'authors', got 'paper'"),
        ("one", {"num_branches": 1}, "`num_branches` must be >= 2"),
        ("one", {"rampup_epochs": -1}, "`rampup_epochs` counts epochs from 0, got -1"),
        ("ps_kd", {"num_samples": 9, "alpha": 1.5}, "`alpha` is the share of earlier predictions"),
        ("ps_kd", {}, "'ps_kd' needs the setting 'num_samples'"),
        ("frskd_sla", {"betta": 1}, "'frskd_sla' has no setting 'betta'; its settings are: .*single_pass.*feature"),
        ("frskd", {"feature_loss": "fit"}, "`feature_loss` must be one of 'attention', 'hint', 'overhaul', got 'fit'"),
        ("frskd", {"feature_loss": "hint", "beta": 0}, "'hint'` has weights of its own, which `beta=0` leaves"),
    ],
)
def test_bad_settings(method, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_double(method, fake_student()[0], **settings)
