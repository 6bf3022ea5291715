"""Mixup and CutMix: the reference's numbers, agreement with timm's where it has the same draws, draws, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup as TimmMixup
from timm.data.mixup import cutmix_bbox_and_lam

from frskd_plugin.data.mixing import CutMix, Mixup, cutmix, cutmix_box, draw_beta, mixed_targets, mixup
from tests.helpers.reference import DATA


@pytest.fixture(scope="module")
def reference():
    return {name: torch.from_numpy(array) for name, array in np.load(DATA / "mix.npz").items()}


@pytest.mark.parametrize("case", ["mixup.0", "mixup.1", "cutmix.0", "cutmix.1", "cutmix.2", "cutmix.3"])
def test_mixing_equals_the_reference(reference, case):
    images, index, lam = reference["image"], reference["index"], reference[f"{case}.lam"].item()
    if case.startswith("mixup"):
        torch.testing.assert_close(mixup(images, lam, index), reference[f"{case}.image"], rtol=0, atol=1e-6)
    else:
        centre, drawn = reference[f"{case}.centre"].tolist(), reference[f"{case}.lam_drawn"].item()
        box, left = cutmix_box(drawn, centre, *images.shape[2:])
        assert list(box) == reference[f"{case}.box"].tolist() and left == lam
        assert torch.equal(cutmix(images, box, index), reference[f"{case}.image"])
    # the cross-entropy with soft targets is the reference's sum of two cross-entropies, and so is its gradient
    logits = reference["logits"].double().requires_grad_()
    soft = mixed_targets(reference["labels"], index, lam, num_classes=logits.shape[1])
    loss = F.cross_entropy(logits, soft.double())
    loss.backward()
    assert loss.item() == pytest.approx(reference[f"{case}.loss"].item(), abs=1e-7)
    torch.testing.assert_close(logits.grad, reference[f"{case}.grad_logits"].double(), rtol=0, atol=1e-7)


def test_soft_targets_are_mixed_like_labels():
    labels, index = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    hot = F.one_hot(labels, 4).double()
    mixed = mixed_targets(hot, index, 0.3, num_classes=4)
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, 0.3 * hot + 0.7 * hot[index])
    torch.testing.assert_close(mixed_targets(labels, index, 0.3, num_classes=4), mixed.float())
    twice = mixed_targets(mixed, index, 0.6, num_classes=4)  # such as of a label smoothed before
    torch.testing.assert_close(twice.sum(dim=1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("mix", [Mixup(0.3), CutMix(1.0)])
def test_draws_follow_the_random_state_and_leave_the_batch_alone(mix):
    images, labels = torch.randn(6, 3, 9, 8), torch.arange(6)
    kept, numpy_state = (images.clone(), labels.clone()), np.random.get_state()[1].copy()
    torch.manual_seed(5)
    first, other = mix(images, labels, 6), mix(images, labels, 6)
    torch.manual_seed(5)
    drawn = mix.draw(images.shape)
    assert not torch.equal(first[1], other[1])
    assert torch.equal(images, kept[0]) and torch.equal(labels, kept[1])
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert first[1].shape == (6, 6) and torch.allclose(first[1].sum(dim=1), torch.ones(6))
    # what is drawn before, as tensors, mixes to the bit as numbers do
    lam, index = drawn["lam"].item(), drawn["index"]
    by_number = cutmix(images, drawn["box"].tolist(), index) if "box" in drawn else mixup(images, lam, index)
    for mixed, soft in (first, mix(images, labels, 6, drawn)):
        assert torch.equal(mixed, by_number) and torch.equal(soft, mixed_targets(labels, index, lam, 6))
    before = torch.get_rng_state()
    apart = [type(mix)(1.0, torch.Generator().manual_seed(3))(images, labels, 6) for _ in range(2)]
    assert torch.equal(apart[0][0], apart[1][0]) and torch.equal(torch.get_rng_state(), before)


def test_images_and_targets_are_mixed_by_the_same_share():
    # image i is i everywhere and class i: the mean of a mixed image is that of its targets
    images, labels = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 7, 5), torch.arange(8)
    torch.manual_seed(0)
    for mix in (Mixup(1.0), CutMix(1.0)):
        for _ in range(20):
            mixed, targets = mix(images, labels, 8)
            torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(8.0))


def test_lam_is_drawn_from_beta_on_both_sides_of_a_half():
    generator = torch.Generator().manual_seed(0)
    draws = np.array([draw_beta(0.2, generator) for _ in range(2000)])
    assert draws.mean() == pytest.approx(0.5, abs=0.03)  # not max(lam, 1 - lam)
    assert draws.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)  # of Beta(a, a)


def test_timm_agrees_given_the_same_pairs_and_box():
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([3, 0, 2, 1])
    flipped = torch.arange(4).flip(0)
    np.random.seed(2)
    (row0, row1, column0, column1), lam = cutmix_bbox_and_lam(
        images.shape, (np.random.rand(), np.random.beta(1.0, 1.0))[1]
    )
    np.random.seed(2)
    timm_mix = TimmMixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=4)
    mixed, soft = timm_mix(images.clone(), labels)
    assert 0 < lam < 1
    assert torch.equal(cutmix(images, (row0, row1, column0, column1), flipped), mixed)
    torch.testing.assert_close(mixed_targets(labels, flipped, lam, 4), soft)


def test_mistakes_are_told():
    images, index = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([1, 0])
    with pytest.raises(TypeError, match="float images, got torch.uint8.*normalise before mixing"):
        mixup(images, 0.5, index)
    with pytest.raises(ValueError, match=r"labels must be 0..4, got 0..5: num_classes=5 does not fit"):
        mixed_targets(torch.tensor([0, 5]), index, 0.5, num_classes=5)
    with pytest.raises(ValueError, match=r"soft targets \[B, 5\] \(floats\), got \[2, 4\] of torch.float32"):
        mixed_targets(torch.rand(2, 4), index, 0.5, num_classes=5)
    for kind in (Mixup, CutMix):
        with pytest.raises(ValueError, match="must be above 0, got 0.*leave it out"):
            kind(alpha=0)
