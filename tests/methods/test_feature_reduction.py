"""The attention transfer that does not depend on the resolution: ``feature_reduction='batchmean'``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frskd_plugin.core import AttentionTransferLoss, FRSKDLoss, HintLoss, attention_transfer_loss
from tests.methods.method_tester import MethodTester, fake_student, make_double, wrap


def random_maps(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4 + i, *size, generator=generator, dtype=torch.float64) for i, size in enumerate(sizes)]


def upsampled(feat):
    """Each value as a block of 2 x 2."""
    return feat.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_doubling_the_resolution_keeps_batchmean_and_quarters_mean():
    feat, refined = random_maps((5, 7), (5, 7))
    for variant, reduction, factor in (
        ("published", "batchmean", 1),
        ("published", "mean", 0.25),
        ("equations", "mean", 1),
        ("equations", "batchmean", 1),
    ):
        small = attention_transfer_loss(feat, refined, variant, reduction)
        large = attention_transfer_loss(upsampled(feat), upsampled(refined), variant, reduction)
        torch.testing.assert_close(large, factor * small, rtol=1e-12, atol=0)


def test_batchmean_equals_an_independent_formula():
    """A norm of 1 each: the sum of squared differences is 2 - 2 cos of the pooled maps."""
    feats = random_maps((6, 6), (3, 2))
    refined = [torch.rand(3, 9, *feat.shape[2:], dtype=torch.float64) for feat in feats]
    expected = 0.0
    for feat, target in zip(feats, refined, strict=True):
        a, b = ((x.numpy() ** 2).mean(1).reshape(3, -1) for x in (feat, target))
        cos = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
        expected += (2 - 2 * cos).mean()
    assert AttentionTransferLoss(reduction="batchmean")(feats, refined).item() == pytest.approx(expected, rel=1e-12)


def test_levels_differ_from_mean_by_their_number_of_positions():
    feats = random_maps((8, 8), (4, 4), (3, 5))
    refined = [feat.flip(0) for feat in feats]
    mean, batchmean = (AttentionTransferLoss(reduction=r).levels(feats, refined) for r in ("mean", "batchmean"))
    for level, positions in enumerate((64, 16, 15)):
        torch.testing.assert_close(batchmean[level] / positions, mean[level], rtol=1e-12, atol=0)


def test_gradients_by_finite_differences():
    feat, refined = random_maps((3, 4), (3, 4))
    loss = AttentionTransferLoss(reduction="batchmean")
    assert torch.autograd.gradcheck(lambda x: loss([x], [refined]), (feat.requires_grad_(),))


class TestBatchmean(MethodTester):
    method = "frskd"
    settings = {"feature_reduction": "batchmean", "beta": 1.5}

    def test_wrap_hands_it_to_the_loss(self):
        assert self.make().method.loss_distill.feature_loss.reduction == "batchmean"


def test_method_weighs_each_level_by_its_number_of_positions():
    info, feats, logits = fake_student()  # levels of 8 x 8 and 4 x 4
    targets = torch.tensor([0, 1, 2, 3])
    method = make_double("frskd", info, feature_reduction="batchmean", beta=0.25)
    refined, _ = method.self_teacher(feats)
    levels = [attention_transfer_loss(f, g) for f, g in zip(feats, refined, strict=True)]
    losses = method(lambda _: (feats, logits), torch.zeros(4, 3, 8, 8), targets, F.cross_entropy)
    torch.testing.assert_close(losses["loss_feat"], 0.25 * (64 * levels[0] + 16 * levels[1]), rtol=1e-12, atol=0)


def test_configs_reach_it():
    registry = pytest.importorskip("mmengine.registry", reason="configs need mmengine")
    loss = registry.MODELS.build({"type": "FRSKDLoss", "beta": 0.5, "feature_reduction": "batchmean"})
    feats = random_maps((8, 8), (4, 4))
    refined = [feat.flip(0) for feat in feats]
    logits = torch.zeros(3, 2, dtype=torch.float64)
    expected = 0.5 * sum(
        attention_transfer_loss(f, g, reduction="batchmean") for f, g in zip(feats, refined, strict=True)
    )
    torch.testing.assert_close(loss(logits, logits, feats, refined)["loss_feat"], expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AttentionTransferLoss(reduction="sum"), "`reduction` must be one of 'mean', 'batchmean', got 'sum'"),
        (
            lambda: FRSKDLoss(feature_loss=HintLoss([4], [8]), feature_reduction="batchmean"),
            "belongs to the attention transfer, got `feature_loss=HintLoss`",
        ),
        (
            lambda: wrap("frskd", feature_loss="hint", beta=1.0, feature_reduction="batchmean"),
            "belongs to `feature_loss='attention'`, got 'hint'",
        ),
        (lambda: wrap("frskd", feature_reduction="batchmean"), r"needs a `beta` of its own.*beta=100 / 64 for 8x8"),
        (lambda: wrap("frskd", feature_reduction="sum"), "`feature_reduction` must be one of 'mean', 'batchmean'"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
