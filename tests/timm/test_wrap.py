"""Promises of `frskd_plugin.wrap`: losses in training, the plain model otherwise, and nothing of it is touched."""

from __future__ import annotations

import copy
import logging

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEma, ModelEmaV3
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import frskd_plugin
import frskd_plugin.timm  # noqa: F401  (registers the CIFAR networks)
from frskd_plugin.core import attention_transfer_loss, soft_label_loss
from frskd_plugin.methods import Method, method_names, register_method
from tests.helpers.model_tester import same, without_gradient
from tests.helpers.toy_classifier import ToyClassifier

FAMILIES = {
    "cnn": ("test_resnet", (3, 64, 64)),
    "vit": ("test_vit", (3, 160, 160)),
    "cifar": ("wrn_16_2", (3, 32, 32), {"depth": 10, "k": 1}),
}


def make(family="cifar", num_classes=10, **settings):
    name, size, *kwargs = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **dict(*kwargs))
    return model, frskd_plugin.wrap(model, input_size=size, **settings)


def batch(family="cifar", size=4, num_classes=10):
    torch.manual_seed(1)
    return torch.randn(size, *FAMILIES[family][1]), torch.randint(num_classes, (size,))


@pytest.mark.parametrize(
    ("family", "variant", "mixing"),
    [
        ("cnn", "published", None),
        ("vit", "published", {"mixup_alpha": 0.2}),
        ("cifar", "published", {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}),
        ("cifar", "equations", None),
    ],
)
def test_total_is_equation_5_and_trains_every_parameter(family, variant, mixing):
    student, model = make(family, variant=variant, alpha=3, beta=50, temperature=2)
    images, targets = batch(family)
    if mixing:
        images, targets = Mixup(**mixing, label_smoothing=0.1, num_classes=10)(images, targets)
    feats, logits = model.student_forward(images)
    refined_feats, teacher_logits = model.method.self_teacher(feats)
    losses = model(images, targets)
    expected = F.cross_entropy(logits, targets) + F.cross_entropy(teacher_logits, targets)
    expected += 3 * soft_label_loss(logits, teacher_logits, 2, variant)
    expected += 50 * sum(attention_transfer_loss(f, g, variant) for f, g in zip(feats, refined_feats, strict=True))
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["loss"], sum(v for k, v in losses.items() if k.startswith("loss_")))
    torch.testing.assert_close(losses["output"], logits)
    losses["loss"].backward()
    assert without_gradient(model) == []

    model.eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.method, "forward", lambda *_: pytest.fail("the method ran"))
        patch.setattr(model.method.self_teacher, "forward", lambda *_: pytest.fail("the self-teacher ran"))
        assert torch.equal(model(images), student.eval()(images))
    expected = model.method.self_teacher(model.student_forward(images)[0])[1]
    assert torch.equal(model.teacher_logits(images), expected)


def test_baseline_is_the_plain_step():
    student, model = make(method="baseline")
    images, targets = batch()
    losses = model(images, targets)
    assert list(losses) == ["loss", "loss_ce", "output"]
    torch.testing.assert_close(losses["loss"], F.cross_entropy(student(images), targets))
    assert model.teacher_logits(images) is None and list(model.method.state_dict()) == []


def test_state_dict_holds_student_and_method_apart():
    student, model = make()
    assert frskd_plugin.unwrap(model) is student
    keys = set(model.state_dict())
    assert {k.removeprefix("student.") for k in keys if k.startswith("student.")} == set(student.state_dict())
    others = {k for k in keys if not k.startswith(("student.", "method.self_teacher."))}
    assert others == {"method.loss_distill.gate.mean"}


def test_weights_statistics_modes_and_random_numbers_stay():
    model = timm.create_model("test_resnet", num_classes=10)
    model.layer1.eval()
    model.conv1.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    torch.manual_seed(7)
    wrapped = frskd_plugin.wrap(model, "baseline", input_size=(3, 64, 64))
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    assert same(model.state_dict(), before)
    assert [m.training for m in model.modules()] == modes
    assert wrapped.training and not any(p.requires_grad for p in model.conv1.parameters())
    assert all(p.grad is None for p in model.parameters())

    wrapped = frskd_plugin.wrap(model.eval().double(), input_size=(3, 64, 64))
    assert not any(m.training for m in wrapped.modules())
    assert {p.dtype for p in wrapped.method.parameters()} == {torch.float64}


def share(model, size):
    """MACs of the self-teacher over the student's, counted apart from the code that chooses."""
    images = torch.randn(1, *size)
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as plain:
        model.student(images)
    with torch.no_grad(), FlopCounterMode(display=False) as both:
        model.teacher_logits(images)
    return both.get_total_flops() / plain.get_total_flops() - 1


@pytest.mark.parametrize(
    ("name", "kwargs", "width", "limited"),
    [("wrn_16_2", {}, 2, False), ("resnet26", {"channels": (16, 32, 64, 128)}, 1, True)],
)
def test_default_width_keeps_the_teacher_below_its_share_and_says_so_once(name, kwargs, width, limited, caplog):
    model = timm.create_model(name, num_classes=10, **kwargs)
    size = (3, 64, 64)
    with caplog.at_level(logging.INFO):
        wrapped = frskd_plugin.wrap(model, input_size=size)
    found = share(wrapped, size)
    assert 0.4 < found <= 0.75
    assert wrapped.method.width == width and (wrapped.method.max_channels is not None) == limited
    (record,) = caplog.records
    assert f"{found:.2f} of the student's MACs" in record.getMessage()
    assert record.levelname == ("WARNING" if limited else "INFO")  # the paper's width is no news


def test_limits_to_the_channels_and_to_the_share(caplog):
    _, model = make("cnn", width="auto", max_share=0.2, max_channels=64)
    assert max(model.method.self_teacher.neck.out_channels) <= 64 and share(model, (3, 64, 64)) <= 0.2
    caplog.clear()
    _, model = make("cnn", width=4, max_channels=512, out_indices=(1, 2, 3, 4))  # a costly teacher is pointed out
    assert ["width='auto'" in r.getMessage() for r in caplog.records] == [True]
    assert model.method.self_teacher.neck.out_channels == [128, 192, 512, 384]  # 4 times 32, 48, 192, 96
    student = ToyClassifier()  # a tiny network gets the least teacher all the same
    student.body, student.head = nn.Conv2d(4, 32, 3, stride=8, padding=1), nn.Linear(32, 3)
    assert frskd_plugin.wrap(student).method.self_teacher.neck.out_channels == [4, 8]
    for limit, message in ((1e-5, "even 8 channels a level cost"), (0, "must be > 0")):
        with pytest.raises(ValueError, match=message):
            make(width="auto", max_share=limit)


@pytest.mark.parametrize(
    ("family", "chosen", "indices"),
    [
        ("cnn", None, (1, 2, 3, 4)),  # a ResNet's stages without its stem, as in the paper
        ("cifar", None, (0, 1, 2)),
        ("vit", None, (0, 2, 3, 5)),  # four evenly spaced ones of six blocks
        ("cnn", (-2, -1), (3, 4)),
    ],
)
def test_levels(family, chosen, indices):
    _, model = make(family, method="baseline", out_indices=chosen)
    assert model.out_indices == indices
    feats, _ = model.student_forward(batch(family)[0])
    assert [f.shape[1] for f in feats] == [model.feature_info[i]["num_chs"] for i in indices]


def test_one_map_is_too_few_and_the_message_lists_them():
    message = r"at least 2 feature maps, and out_indices=\(4,\) names 1\. 'ResNet' has 5 .*4: 96 channels"
    with pytest.raises(ValueError, match=message):
        make("cnn", out_indices=(4,))
    assert make("cnn", method="baseline", out_indices=(4,))[1].out_indices == (4,)


def test_a_split_that_gives_other_logits_is_refused():
    model = timm.create_model("wrn_16_2", num_classes=10)
    plain = model.forward_head
    model.forward_head = lambda x, **kwargs: plain(x, **kwargs) + 1
    model.forward = lambda x: plain(model.forward_features(x))
    with pytest.raises(ValueError, match="cannot be split.*another network than the one that is deployed"):
        frskd_plugin.wrap(model)


TINY_SIZE = {"input_size": (3, 64, 64)}


@pytest.mark.parametrize(
    ("network", "settings", "error", "message"),
    [
        ("resnet18", {}, TypeError, r"wrap expects a classifier of timm, such as timm.create_model\(.*got str"),
        (nn.Sequential(), {}, TypeError, "Sequential has no forward_intermediates and no forward_head"),
        ({"num_classes": 0}, {}, ValueError, "num_classes=0"),
        ({}, {"input_size": 64}, ValueError, r"`input_size` must be \(channels, height, width\).*got 64"),
        ({"model_name": "test_vit"}, {"input_size": (3, 33, 33)}, ValueError, r"failed on .*Give \(channels, height"),
        ({}, {"method": "fskrd"}, ValueError, "`method` must be one of 'baseline', .*'frskd', .*got 'fskrd'"),
        ({}, {"method": "baseline", "alpha": 3}, TypeError, "'baseline' has no setting 'alpha'; it has no settings"),
        ({}, {"out_indices": (1, 9)}, ValueError, r"\(1, 9\) does not fit.*5 feature maps \(0: 32 channels of 32x32, "),
        ({}, {"width": "Auto"}, ValueError, "`width` must be an int >= 1 or 'auto', got 'Auto'"),
        ({}, {"criterion": nn.CrossEntropyLoss}, TypeError, r"`criterion` is called .*nn.CrossEntropyLoss\(\), got"),
    ],
)
def test_what_cannot_be_wrapped_is_told(network, settings, error, message):
    if isinstance(network, dict):
        network = timm.create_model(**{"model_name": "test_resnet", "num_classes": 10, **network})
    with pytest.raises(error, match=message):
        frskd_plugin.wrap(network, **{**TINY_SIZE, **settings})


def test_another_model_cannot_be_unwrapped_nor_a_wrapped_one_wrapped():
    with pytest.raises(TypeError, match="unwrap expects a model made by frskd_plugin.wrap, got Linear"):
        frskd_plugin.unwrap(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="is wrapped already"):
        frskd_plugin.wrap(make()[1])


def test_a_users_own_method_is_ten_lines(monkeypatch):
    monkeypatch.setattr("frskd_plugin.methods.registry._METHODS", {})

    @register_method("confident")
    class Confident(Method):
        """Cross-entropy less the entropy of the prediction."""

        def __init__(self, student, weight=0.1):
            super().__init__(student)
            self.weight = weight

        def forward(self, student, images, targets, criterion):
            _, logits = student(images)
            entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
            return {"loss_ce": criterion(logits, targets), "loss_entropy": -self.weight * entropy, "output": logits}

    class Taken(Confident):
        def __init__(self, student, criterion=None):
            super().__init__(student)

    losses = make(method="confident", weight=0.5)[1](*batch())
    probabilities = losses["output"].softmax(1)
    expected = losses["loss_ce"] + 0.5 * (probabilities * probabilities.log()).sum(1).mean()
    torch.testing.assert_close(losses["loss"], expected)
    other = type("Other", (Confident,), {})
    for name, found, error, message in (
        ("confident", other, ValueError, "'confident' is there already"),
        ("other", nn.Linear, TypeError, "expects a subclass of frskd_plugin.methods.Method"),
        ("other", type("Empty", (Method,), {}), TypeError, "Empty must override forward"),
        ("other", Taken, ValueError, "the setting 'criterion' of Taken could never be given.*rename it"),
        (Confident, None, TypeError, r"expects a name, as in @register_method\('mine'\), got <class"),
    ):
        with pytest.raises(error, match=message):
            register_method(name)(found)
    assert method_names() == ["confident"]
    register_method("confident", force=True)(other)  # a cell that is run again
    assert type(make(method="confident")[1].method) is other


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ({"loss": 1.0, "loss_ce": 1.0}, ValueError, "returns `loss`, which is the sum"),
        ({"output": 1.0}, ValueError, "returns no term `loss_...` to train with, only output"),
        ([1.0], TypeError, "must return a dict of its terms, got list"),
    ],
)
def test_terms_that_make_no_total_are_refused(terms, error, message, monkeypatch):
    _, model = make(method="baseline")
    made = {name: torch.tensor(value) for name, value in terms.items()} if isinstance(terms, dict) else terms
    monkeypatch.setattr(model.method, "forward", lambda *_: made)
    with pytest.raises(error, match=f"The method Baseline {message}"):
        model(*batch())


def test_an_error_that_is_not_about_soft_labels_keeps_its_name_and_cause():
    def broken(logits, targets):
        raise RuntimeError("out of luck") from KeyError("cause")

    with pytest.raises(RuntimeError, match="^out of luck") as raised:
        make(method="label_smoothing", criterion=broken)[1](*batch())
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "outer", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel, ModelEmaV3, ModelEma]
)
def test_of_a_wrapper_the_inner_model_is_to_be_wrapped_first(outer):
    model = timm.create_model("test_resnet", num_classes=4)
    with pytest.raises(TypeError, match=r"holds a timm model: wrap that one first \(`wrap\(model\.\w+\)`\)"):
        frskd_plugin.wrap(outer(model))


def test_a_vit_that_drops_patches_has_no_maps():
    model = timm.create_model("test_vit", num_classes=4, img_size=64, patch_drop_rate=0.5)
    with pytest.raises(ValueError, match=r"drops patches in training \(`patch_drop`\).*with patch_drop_rate=0"):
        frskd_plugin.wrap(model, "sad")
    plain = frskd_plugin.wrap(model, "baseline").train()
    assert plain(torch.randn(2, 3, 64, 64), torch.tensor([1, 2]))["loss"].isfinite()


def test_calls_that_no_step_can_be_made_of():
    student, model = make()
    images, targets = batch(num_classes=5)
    with pytest.raises(ValueError, match=r"call model\(images, targets\).*model\.eval\(\)"):
        model(images)
    patches = {"patches": torch.rand(2, 16, 48), "patch_coord": torch.zeros(2, 16, 2)}
    with pytest.raises(TypeError, match="got dict. Batches of NaFlex models .*: train without the NaFlex loader"):
        model(patches, targets)
    student.reset_classifier(5)
    with pytest.raises(ValueError, match="5 classes and its self-teacher 10: .* wrap the model again"):
        model(images, targets)


@pytest.mark.parametrize("settings", [dict(method="ps_kd", num_samples=4), dict(method="label_smoothing")])
def test_soft_labels_need_a_criterion_that_takes_them(settings):
    images, targets = batch()
    extra = {"index": torch.arange(4)} if settings["method"] == "ps_kd" else {}
    _, model = make(criterion=LabelSmoothingCrossEntropy(), **settings)
    with pytest.raises(ValueError, match="LabelSmoothingCrossEntropy failed on them.*SoftTargetCrossEntropy"):
        model(images, targets, **extra)
    losses = [
        make(criterion=made, **settings)[1](images, targets, **extra)["loss"]
        for made in (None, SoftTargetCrossEntropy())
    ]
    torch.testing.assert_close(*losses)


def test_two_classifiers_of_a_distilled_vit_train_as_their_mean():
    """Timm's DeiT hands out a tuple of logits in distilled training."""
    torch.manual_seed(0)
    tiny = dict(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=4)
    student = timm.create_model("deit_tiny_distilled_patch16_224", **tiny)
    student.set_distilled_training(True)
    model = frskd_plugin.wrap(student, width=1)
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    first, second = student(images)
    losses = model(images, targets)
    torch.testing.assert_close(losses["output"], (first + second) / 2)
    losses["loss"].backward()
    assert student.head.weight.grad.any() and student.head_dist.weight.grad.any()
    torch.testing.assert_close(model.eval()(images), losses["output"])
