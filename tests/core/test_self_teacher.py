"""`SelfTeacherNeck`, `SelfTeacher`, `BiFPN` beyond the published numbers: equations, shapes, gradients, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frskd_plugin.core import BiFPN, SelfTeacher, SelfTeacherNeck
from frskd_plugin.core.blocks import (
    ConvBNReLU,
    Resize,
    batch_norm,
    max_pool_to,
    subsample_to,
    upsample_to,
)
from frskd_plugin.core.dry_run import count_forward
from tests.core.equations import refined_maps
from tests.helpers.model_tester import ModelTester

CHANNELS = [8, 16, 32]


def make_feats(channels, sizes, batch=2, dtype=torch.float32):
    sizes = [(size, size) if isinstance(size, int) else size for size in sizes]
    return [torch.randn(batch, c, *size, dtype=dtype) for c, size in zip(channels, sizes, strict=True)]


MODELS = {
    "published": lambda: SelfTeacherNeck(CHANNELS),
    "equations": lambda: SelfTeacherNeck(CHANNELS, variant="equations"),
    "repeated": lambda: SelfTeacherNeck(CHANNELS, repeat=3, depth=1),
    "constant width": lambda: SelfTeacherNeck(CHANNELS, channels=16, repeat=2),
    "segmentor's": lambda: SelfTeacherNeck(CHANNELS, channels=16, repeat=2, variant="efficientdet", end_level=0),
    "segmentor's, published": lambda: SelfTeacherNeck(CHANNELS, channels=16, variant="published_seg", end_level=0),
    "classifier's": lambda: SelfTeacher(CHANNELS, num_classes=10),
    "pyramid": lambda: BiFPN(CHANNELS, channels=16, num_levels=5, repeat=2),
}


@pytest.mark.parametrize("name", MODELS)
class TestNecks(ModelTester):
    sizes = (16, 23)

    @pytest.fixture(autouse=True)
    def choose(self, name):
        self.make_model = MODELS[name]

    def make_inputs(self, size):
        return (make_feats(CHANNELS, [size, (size + 1) // 2, (size + 3) // 4]),)


@pytest.mark.parametrize("constant", [False, True])
def test_equations_equal_an_independent_formula(constant):
    torch.manual_seed(0)
    channels = 24 if constant else "scaled"
    neck = SelfTeacherNeck([8, 16, 32], width=2, channels=channels, variant="equations").double().train()
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    feats = make_feats([8, 16, 32], [(8, 12), (4, 6), (2, 3)], dtype=torch.float64)
    expected = refined_maps(neck.layers[0], feats)
    for actual, wanted in zip(neck(feats), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", ["published", "equations"])
@pytest.mark.parametrize(
    "sizes",
    [
        [14, 14, 14],  # plain ViT
        [56, 14, 7],  # stride 4 between two levels
        [45, 20, 9, 4, 1],  # sizes from flooring (inception_v3 at 96 px)
        [45, 23, 12, 6, 3],  # sizes from ceiling
        [(9, 16), (4, 8), (2, 4)],
    ],
)
def test_any_sizes_and_two_of_them_in_one_step(variant, sizes):
    channels = [4, 8, 8, 16, 16][: len(sizes)]
    neck = SelfTeacherNeck(channels, variant=variant).train()
    feats = make_feats(channels, sizes)
    refined_feats = neck(feats)
    neck(make_feats(channels, [32 >> i for i in range(len(sizes))]))  # which must not touch what the first pass keeps
    assert [r.shape for r in refined_feats] == [(2, 2 * f.shape[1], *f.shape[2:]) for f in feats]
    refined_feats[-1].square().mean().backward()
    assert all(p.grad is not None for p in neck.parameters())


@pytest.mark.parametrize("variant", ["published", "equations", "efficientdet", "published_seg"])
@pytest.mark.parametrize("end_level", [0, 1, 2])
def test_graph_ends_where_the_head_reads(variant, end_level):
    """Every parameter has a gradient from the level that is read alone, and so has every map behind it."""
    channels = "scaled" if variant in ("published", "equations") else 16
    neck = SelfTeacherNeck(CHANNELS, channels=channels, variant=variant, repeat=2, end_level=end_level).train()
    refined_feats = neck(make_feats(CHANNELS, [8, 4, 2]))
    for feat in refined_feats:
        feat.retain_grad()
    refined_feats[end_level].square().mean().backward()
    assert [name for name, p in neck.named_parameters() if p.grad is None] == []
    if variant in ("published", "equations"):
        assert all(feat.grad is not None for feat in refined_feats)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("size", "to"),
    [
        ((2, 3), (4, 6)),
        ((17, 17), (33, 33)),
        ((5, 4), (9, 8)),  # 9 -> 5 by ceiling, 8 -> 4
        ((4, 4), (9, 9)),  # 9 -> 4 by flooring
        ((3, 3), (3, 3)),
        ((2, 2), (6, 8)),
        ((2, 2), (2, 8)),
        ((6, 6), (3, 3)),  # levels in another order
    ],
)
def test_projecting_first_is_projecting_last(size, to, frozen):
    """`Resize` equals CBR(UP(x)) at any pair of sizes, running statistics and gradients included."""
    torch.manual_seed(0)
    layer, plain = Resize("nearest", 6, 4, project=True).double(), ConvBNReLU(6, 4).double()
    plain.load_state_dict(layer.project.state_dict())
    layer.project.bn.train(not frozen)
    plain.bn.train(not frozen)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    up = to[0] >= size[0] and to[1] >= size[1]
    found = []
    for run in (
        lambda x: layer(x, to, [0.5 * p for p in layer.project.bn.parameters()]),
        lambda x: 0.5 * plain(F.interpolate(x, to, mode="nearest") if up else max_pool_to(x, to)),
    ):
        leaf = x.clone().requires_grad_()
        result = run(leaf)
        found.append((result, *torch.autograd.grad((result * torch.arange(to[1])).sum(), leaf)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    for a, b in zip(layer.project.bn.buffers(), plain.bn.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_repeats_with_cumulative_average():
    cumulative, plain = (nn.BatchNorm2d(3, momentum=None).double() for _ in range(2))
    for x in torch.randn(3, 2, 3, 2, 2, dtype=torch.float64):
        batch_norm(cumulative, x, repeats=4)
        plain(F.interpolate(x, scale_factor=2))
    torch.testing.assert_close(cumulative.running_var, plain.running_var, rtol=1e-12, atol=0)


def test_max_pool_pads_below_and_right():
    x = torch.arange(36.0).view(1, 1, 6, 6)
    expected = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)
    assert torch.equal(max_pool_to(x, (3, 3)), expected)
    odd = torch.rand(1, 1, 5, 7)
    assert torch.equal(max_pool_to(odd, (3, 4)), F.max_pool2d(F.pad(odd, (1, 1, 1, 1)), 3, 2))
    assert torch.equal(max_pool_to(x, (1, 1)), torch.full((1, 1, 1, 1), 35.0))
    assert max_pool_to(x, (6, 6)) is x and upsample_to(x, (6, 6), "nearest") is x and subsample_to(x, (6, 6)) is x
    assert torch.equal(subsample_to(x, (3, 3)), x[..., ::2, ::2])
    assert torch.equal(upsample_to(x, (3, 3), "nearest"), max_pool_to(x, (3, 3)))


def test_rectified_maps_need_no_second_relu():
    torch.manual_seed(0)
    neck = SelfTeacherNeck(CHANNELS).eval()
    spared = SelfTeacherNeck(CHANNELS, rectify_input=False).eval()
    spared.load_state_dict(neck.state_dict())
    feats = make_feats(CHANNELS, [8, 4, 2])
    rectified = [feat.relu() for feat in feats]
    assert all(torch.equal(a, b) for a, b in zip(neck(rectified), spared(rectified), strict=True))
    assert not torch.equal(neck(feats)[0], spared(feats)[0])


@pytest.mark.parametrize("variant", ["efficientdet", "published"])
def test_bifpn_trains_in_either_layout_and_keeps_it(variant):
    """It works in channels_last inside, on a CPU; what goes out has the layout of what came in."""
    torch.manual_seed(0)
    neck = BiFPN([6, 6, 6], channels=6, repeat=2, variant=variant).double().train()
    feats, twin = make_feats([6, 6, 6], [8, 4, 2], dtype=torch.float64), copy.deepcopy(neck)
    plain = [feat.clone().requires_grad_() for feat in feats]
    last = [feat.contiguous(memory_format=torch.channels_last).requires_grad_() for feat in feats]
    expected, actual = neck(plain), twin(last)
    assert all(feat.is_contiguous() for feat in expected)
    assert all(feat.is_contiguous(memory_format=torch.channels_last) for feat in actual)
    sum(feat.square().sum() for feat in expected).backward()
    sum(feat.square().sum() for feat in actual).backward()
    for a, e in zip((*actual, *(x.grad for x in last)), (*expected, *(x.grad for x in plain)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(feats, plain, strict=True))  # nothing is changed in place


FEATS = make_feats(CHANNELS, [8, 4, 2])


def neck(*args, **settings):
    return SelfTeacherNeck(*args or [CHANNELS], **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neck([64]), r"at least 2 levels, highest resolution first, got \[64\]"),
        (lambda: neck(64), r"must list the channels of each level, e.g. \[64, 128, 256, 512\], got 64"),
        (lambda: neck([8, 0]), r"`in_channels\[1\]` must be >= 1, got 0"),
        (lambda: neck(width=1.5), "`width` must be an int >= 1, got 1.5"),
        (lambda: neck(channels="wide"), "`channels` must be an int >= 1, got 'wide'"),
        (lambda: neck(variant="paper"), "`variant` must be one of 'published', 'equations'"),
        (lambda: neck(channels=8, max_channels=8), "leave `max_channels` out"),
        (lambda: neck(end_level=3), r"`end_level` must be a level in 0..2"),
        (lambda: neck(variant="efficientdet"), "give `channels` as an int"),
        (lambda: neck(channels=8, variant="efficientdet", depth=2), "leave `depth`"),
        (lambda: neck(end_level=0).output_norms(), "ends at level 0"),
        (lambda: BiFPN(CHANNELS, num_levels=2), r"`num_levels` \(2\) is smaller than the number of maps \(3\)"),
        (lambda: neck()(FEATS[:2]), r"built for 3 feature maps .* got 2"),
        (lambda: neck()(FEATS[0]), "takes a list of feature maps .* got Tensor"),
        (lambda: neck()([*FEATS[:2], FEATS[2].flatten(2)]), r"map 2 must be \[B, C, H, W\], got shape \[2, 32, 4\]"),
        (lambda: neck()([*FEATS[:2], FEATS[2].transpose(1, 3)]), r"map 2 must have 32 channels, got 2 .*\(NCHW\)"),
        (
            lambda: neck()([FEATS[0], *(f[:1] for f in FEATS[1:])]),
            r"takes the .* maps of one batch, got \[2, 1, 1\] im",
        ),
        (lambda: neck([8, 8])([torch.rand(2, 8, s, s) for s in (4, 8)]), r"highest .* got 4x4, 8x8.*order \[1, 0\] "),
        (lambda: BiFPN([8, 16], 8)(make_feats([8, 16], [4, 2], 1)), r"BiFPN, pyramid: feature map 2 .* \[1, 8, 1, 1\]"),
        (lambda: neck([8, 16])(make_feats([8, 16], [2, 1], 1)), r"map 1 has a single value .* \[1, 16, 1, 1\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_batch_of_one_at_1x1_is_fine_in_eval_mode():
    assert len(SelfTeacherNeck([8, 16]).eval()([torch.zeros(1, 8, 2, 2), torch.zeros(1, 16, 1, 1)])) == 2


def test_limit_of_the_channels_narrows_the_wide_levels_alone():
    assert SelfTeacherNeck([8, 16, 32], width=2, max_channels=24).out_channels == [16, 24, 24]


@pytest.mark.parametrize("variant", ["published", "equations"])
def test_recomputing_the_maps_changes_nothing_but_what_is_kept(variant):
    torch.manual_seed(0)
    plain = SelfTeacher(CHANNELS, num_classes=3, variant=variant).train()
    twin = SelfTeacher(CHANNELS, num_classes=3, variant=variant, checkpoint=True).train()
    twin.load_state_dict(plain.state_dict())
    found = []
    for teacher in (plain, twin):
        feats = [feat.clone().requires_grad_() for feat in FEATS]
        with count_forward(teacher) as cost:
            refined_feats, logits = teacher(feats)
        (logits.square().sum() + sum(feat.square().mean() for feat in refined_feats)).backward()
        parameters = dict(teacher.named_parameters())
        gradients = [parameters[name].grad for name in parameters] + [feat.grad for feat in feats]
        found.append(([*refined_feats, logits, *gradients, *teacher.buffers()], cost.kept))
    (expected, kept), (actual, kept_less) = found
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert kept_less < 0.5 * kept


@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float32), ("cpu", torch.float64)])
def test_weights_that_are_assigned_bring_their_device_and_dtype(device, dtype):
    expected = SelfTeacherNeck(CHANNELS).to(dtype).eval()
    with torch.device(device):
        neck = SelfTeacherNeck(CHANNELS).eval()
    neck.load_state_dict(expected.state_dict(), assign=True)
    feats = [feat.to(dtype) for feat in FEATS]
    for a, b in zip(copy.deepcopy(neck)(feats), expected(feats), strict=True):
        torch.testing.assert_close(a, b)
