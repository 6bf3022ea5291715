"""A wrapped model answers timm's questions as the plain one does, and is found inside other people's wrappers."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.utils import ModelEma, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import frskd_plugin
from frskd_plugin.check import check_model
from tests.helpers.toy_classifier import ToyClassifier, toy_batch

IMAGES = torch.rand(2, 3, 160, 160)
LABELS = torch.tensor([1, 2])


def make(name="test_vit", method="frskd", num_classes=7, **settings):
    torch.manual_seed(0)
    student = timm.create_model(name, num_classes=num_classes)
    return student, frskd_plugin.wrap(student, method, **settings)


class Lightning(nn.Module):
    """Module that keeps its model as a user's Lightning module does."""

    def __init__(self, model, name="model"):
        super().__init__()
        setattr(self, name, model)
        self.criterion = nn.CrossEntropyLoss()


@pytest.fixture(scope="module")
def pair():
    return make()


def test_questions_are_answered_as_the_student_does(pair):
    student, model = (module.eval() for module in pair)
    names = ["pretrained_cfg", "num_classes", "num_features", "head_hidden_size", "feature_info", "patch_embed"]
    assert all(getattr(model, name) is getattr(student, name) for name in names)
    config = resolve_model_data_config(model)
    assert config == resolve_model_data_config(student) and config["input_size"] == (3, 160, 160)
    with torch.no_grad():
        features = model.forward_features(IMAGES)
        assert torch.equal(model.forward_head(features), student(IMAGES))
        assert torch.equal(model.forward_intermediates(IMAGES)[0], student.forward_intermediates(IMAGES)[0])
    assert model.get_classifier() is student.get_classifier()
    assert not hasattr(model, "module")
    with pytest.raises(AttributeError, match="'DistilledModel' object has no attribute 'colour'"):
        _ = model.colour


def test_what_is_set_is_set_on_the_student():
    student, model = make()
    model.set_grad_checkpointing(True)
    assert student.grad_checkpointing
    model.head = nn.Linear(student.num_features, 7)
    assert student.head is model.head and "head" not in model._modules
    model.note = "mine"
    assert not hasattr(student, "note") and model.note == "mine"


class TestResetClassifier:
    @pytest.mark.parametrize("method", ["frskd", "baseline"])
    def test_student_and_self_teacher_get_new_classes(self, method):
        student, model = make("test_resnet", method)
        model.double().reset_classifier(3)
        assert student.num_classes == model.num_classes == 3
        if method == "frskd":
            assert model.method.self_teacher.head.weight.dtype == torch.float64
            student.double()  # timm's own reset_classifier keeps the dtype from 1.0.29 on
            losses = model(IMAGES[..., :64, :64].double(), LABELS)
            assert losses["output"].shape == losses["teacher_output"].shape == (2, 3)

    @pytest.mark.parametrize("method", ["frskd_sla", "byot", "kd"])
    def test_methods_that_cannot_follow_say_so_and_change_nothing(self, method):
        teacher = {"teacher": timm.create_model("test_resnet", num_classes=7)} if method == "kd" else {}
        student, model = make("test_resnet", method, **teacher)
        with pytest.raises(ValueError, match=r"cannot follow reset_classifier\(3\): call it on the plain model"):
            model.reset_classifier(3)
        with pytest.raises(ValueError, match="`num_classes` must be >= 1, got 0"):
            model.reset_classifier(0)
        assert student.num_classes == 7 and student.get_classifier().out_features == 7

    @pytest.mark.parametrize("said", [1000, 3])
    def test_a_classifier_replaced_by_hand_counts_and_not_what_the_student_says(self, said):
        student = timm.create_model("test_resnet", num_classes=said)
        student.fc = nn.Linear(student.num_features, 7)
        model = frskd_plugin.wrap(student, "baseline", input_size=(3, 64, 64))
        images = IMAGES[..., :64, :64]
        for targets in (torch.tensor([2, 6]), torch.full((2, 7), 1 / 7)):
            losses = model(images, targets)
            torch.testing.assert_close(losses["loss"], nn.functional.cross_entropy(losses["output"], targets))
        with pytest.raises(ValueError, match=r"classes 0\.\.6 .*got 7: make num_classes=7 fit"):
            model(images, torch.tensor([2, 7]))
        assert check_model(model, input_size=(3, 64, 64)).healthy  # whose labels are drawn
        for classes in (5, said):
            model.reset_classifier(classes)
            assert model.num_logits == model(images, torch.tensor([0, classes - 1]))["output"].shape[1] == classes


class TestUnwrap:
    @pytest.mark.parametrize(
        "outer",
        [
            nn.DataParallel,
            lambda model: torch.compile(model, backend="eager"),
            Lightning,
            lambda model: torch.compile(Lightning(torch.compile(model, backend="eager"), "net"), backend="eager"),
            lambda model: nn.ModuleDict({"a": nn.Linear(1, 1), "b": model}),
        ],
    )
    def test_looks_through_other_peoples_modules(self, outer):
        student = ToyClassifier()
        assert frskd_plugin.unwrap(outer(frskd_plugin.wrap(student))) is student

    def test_looks_through_averages_and_prefers_the_model_to_one(self):
        wrapped = frskd_plugin.wrap(ToyClassifier())
        for average in (AveragedModel, ModelEma, ModelEmaV3, lambda model: Lightning(AveragedModel(model))):
            found = frskd_plugin.unwrap(average(wrapped))
            assert isinstance(found, ToyClassifier) and found is not wrapped.student
        module = Lightning(wrapped)
        module.average = AveragedModel(module.model)
        assert frskd_plugin.unwrap(module) is wrapped.student

    def test_several_models_are_told(self):
        models = nn.ModuleList(frskd_plugin.wrap(ToyClassifier()) for _ in range(2))
        module = nn.Module()
        module.net, module.ema = models[0], AveragedModel(models[0])  # an attribute `ema` is one model of several
        for several, names in ((models, "0, 1"), (module, "net, ema.module")):
            with pytest.raises(ValueError, match=rf"{type(several).__name__} holds several wrapped models \({names}\)"):
                frskd_plugin.unwrap(several)


def test_synchronised_batch_norm_without_a_process_group_trains_as_plain_batch_norm():
    model = frskd_plugin.wrap(ToyClassifier())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    images, targets = toy_batch()
    torch.testing.assert_close(synchronised(images, targets)["loss"], model(images, targets)["loss"])
    rewrapped = frskd_plugin.wrap(nn.SyncBatchNorm.convert_sync_batchnorm(ToyClassifier()))
    assert rewrapped(images, targets)["loss"].isfinite()
