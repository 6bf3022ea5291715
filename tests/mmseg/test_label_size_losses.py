"""Soft labels and cross-entropies at the size of the labels: exact, and without up-sampled maps that are kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.losses import CrossEntropyLoss
from torch import nn

from frskd_plugin.core import soft_label_loss
from frskd_plugin.core.dry_run import count_forward
from frskd_plugin.mmseg.heads import early_losses
from tests.helpers.segmentors import CLASSES, build, effdet, fcn, make_batch, with_frskd

SIZE = (64, 64)


def segmentor(plain=effdet, **settings):
    config = with_frskd(plain())
    config["self_teacher"].update(settings)
    return build(config).train()


def frozen_step(model, labels):
    """Of a model in float64: its maps, the logits of student and teacher, which stay, and the samples."""
    images, samples = make_batch(size=SIZE)
    for sample, label in zip(samples, labels, strict=True):
        sample.gt_sem_seg.data = label
    feats = model.double().extract_feat(images.double())
    student_logits = model.decode_head(feats).detach().requires_grad_()
    output = model.self_teacher(feats)
    model.self_teacher.forward = lambda _: output
    return feats, student_logits, output[1], samples


def test_early_gradients_keep_no_map_of_the_labels_size():
    images, samples = make_batch(size=SIZE)
    kept = {}
    for early in (False, True):
        model = segmentor(early_gradients=early)
        with count_forward(model) as cost:
            losses = model.loss(images, samples)
        kept[early] = cost.kept
        del losses
    maps = 2 * CLASSES * SIZE[0] * SIZE[1] * 4  # one map of both images
    # a log-softmax of each cross-entropy; what the graph keeps in their place is four times 16 x 16 at most
    assert kept[False] - kept[True] >= 2 * maps - 4 * maps // 16


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("resolution", ["label", "head"])
def test_soft_labels_at_each_resolution_with_and_without_ignored_pixels(resolution, ignore):
    labels = torch.zeros(2, 1, *SIZE, dtype=torch.long)
    labels[0, :, :32], labels[1, :, :, 48:] = 255, 255
    model = segmentor(kd_resolution=resolution, ignore_in_soft_label=ignore)
    feats, student_logits, teacher_logits, samples = frozen_step(model, labels)
    value = model.self_teacher.loss(feats, student_logits, samples)["loss_kd"]
    size = SIZE if resolution == "label" else student_logits.shape[2:]
    p, q = (F.interpolate(x, size, mode="bilinear").log_softmax(1) for x in (student_logits, teacher_logits))
    kept = F.interpolate((labels != 255).double() if ignore else torch.ones_like(labels).double(), size)[:, 0]
    expected = ((q.exp() * (q - p)).sum(1) * kept).sum() / kept.sum()
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    if ignore:
        for sample in samples:
            sample.gt_sem_seg.data.fill_(255)
        assert model.self_teacher.loss(feats, student_logits, samples)["loss_kd"] == 0


class WeightedLoss(CrossEntropyLoss):
    """A loss with a weight to train."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, *args, **kwargs):
        return self.log_scale.exp() * super().forward(*args, **kwargs)


def test_losses_with_weights_and_other_outputs_are_left_as_they_are():
    head = segmentor().decode_head
    _, samples = make_batch(size=SIZE)
    logits = torch.randn(2, CLASSES, 16, 16, requires_grad=True)
    original = head.loss_by_feat
    with early_losses(head):
        assert type(head.loss_by_feat(logits, samples)["loss_ce"].grad_fn).__name__ == "_KnownGradientBackward"
        with pytest.raises((TypeError, AttributeError)):
            head.loss_by_feat((logits,), samples)  # mmseg's own error: the head gives no tuples
    assert head.loss_by_feat == original and "loss_by_feat" not in vars(head)
    head.loss_decode = WeightedLoss()
    with early_losses(head):
        head.loss_by_feat(logits, samples)["loss_ce"].backward()
    assert head.loss_decode.log_scale.grad is not None


def binary_fcn(**head):
    plain = fcn()
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": True, "avg_non_ignore": True}
    for name in ("decode_head", "auxiliary_head"):
        plain[name].update(num_classes=2, out_channels=1, threshold=0.3, loss_decode=loss, **head)
    return plain


@pytest.mark.parametrize("resolution", ["label", "head"])
def test_one_logit_a_pixel_takes_a_sigmoid_by_itself(resolution):
    model = segmentor(binary_fcn, kd_resolution=resolution)
    feats, student_logits, teacher_logits, samples = frozen_step(model, torch.randint(2, (2, 1, *SIZE)))
    value = model.self_teacher.loss(feats, student_logits, samples)["loss_kd"]
    size = SIZE if resolution == "label" else student_logits.shape[2:]
    p, q = (F.interpolate(x, size, mode="bilinear").sigmoid() for x in (student_logits, teacher_logits))
    expected = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()
    assert value > 0
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("losses", "kind"), [((True,), "sigmoid"), ((False,), "softmax"), ((False, True), "softmax")])
def test_soft_labels_follow_the_losses_of_the_head(losses, kind, caplog):
    config = with_frskd(fcn())
    config["decode_head"]["loss_decode"] = [
        {"type": "CrossEntropyLoss", "use_sigmoid": use, "loss_name": f"loss_{i}"} for i, use in enumerate(losses)
    ]
    assert build(config).self_teacher.loss_distill.soft_label_loss.soft_label == kind
    assert ("made by a sigmoid" in caplog.text) == (kind == "sigmoid")


def test_each_heads_logits_are_resized_by_its_own_align_corners():
    config = with_frskd(fcn())
    config["self_teacher"]["head"] = {**config["decode_head"], "align_corners": False}
    config["decode_head"]["align_corners"] = True
    model = build(config).double().eval()
    images, samples = make_batch(size=SIZE)
    feats = model.extract_feat(images.double())
    maps = (model.decode_head(feats), model.self_teacher(feats)[1])
    student, teacher = (
        F.interpolate(x, SIZE, mode="bilinear", align_corners=corners)
        for x, corners in zip(maps, (True, False), strict=True)
    )
    value = model.loss(images.double(), samples)["self_teacher.loss_kd"]
    torch.testing.assert_close(value, soft_label_loss(student, teacher, 1.0), rtol=1e-9, atol=0)


def test_settings_and_names_of_losses_are_checked():
    config = with_frskd(fcn())
    config["decode_head"]["loss_decode"] = {"type": "CrossEntropyLoss", "loss_name": "loss_kd"}
    with pytest.raises(ValueError, match="FCNHead: the head's own losses and the distillation both have 'loss_kd'"):
        build(config).train().loss(*make_batch())
    with pytest.raises(TypeError, match="`ignore_in_soft_label` must be True or False, got 255"):
        segmentor(ignore_in_soft_label=255)
    with pytest.raises(ValueError, match="`kd_resolution` must be one of 'label', 'head', got 'image'"):
        segmentor(kd_resolution="image")
