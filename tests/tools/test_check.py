"""Dry run: a healthy model passes, each planted fault is found, its figures are right, nothing is left changed."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn

import frskd_plugin
from frskd_plugin.check import check_model, prepare
from frskd_plugin.commands import run
from frskd_plugin.commands.check import main
from frskd_plugin.core import FRSKDLoss, attention_map
from frskd_plugin.export import count_macs
from tests.helpers.model_tester import same
from tests.helpers.segmentors import build, effdet, fcn, make_batch, with_frskd

ROOT = Path(__file__).parents[2]
SIZE = (3, 64, 64)


def wrapped(method: str = "frskd", num_classes: int = 10, **settings) -> nn.Module:
    if method == "frskd":  # whole weights, whatever the defaults are
        settings = {"alpha": 2, "beta": 100, "width": 2, "out_indices": (0, 1, 2, 3, 4), **settings}
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=num_classes)
    return frskd_plugin.wrap(student, method, input_size=SIZE, **settings)


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *SIZE, generator=generator), torch.arange(count)


def terms_of(report) -> dict:
    return {term.name: term for term in report.terms}


# A healthy model


@pytest.mark.parametrize(
    ("settings", "amp"), [({}, None), ({}, "bf16"), ({"variant": "equations", "beta": 0.01, "width": "auto"}, None)]
)
def test_healthy(settings, amp):
    model = wrapped(**{"width": 1, "beta": 1.0, "out_indices": (1, 2, 3, 4), **settings})
    report = check_model(model, *batch(), amp=amp)
    assert report.problems == () and report.warnings == () and report.healthy
    assert "Healthy: every term trains" in str(report)
    assert report.evaluation.ran == () and report.evaluation.difference == 0


def test_values_and_norms_equal_an_independent_computation():
    model, (images, labels) = wrapped(out_indices=(1, 2, 4), trunk_gradient="linear"), batch()
    whole = check_model(model, images, labels)
    report = terms_of(whole)
    twin = copy.deepcopy(model).train()
    feats, logits = twin.student_forward(images)
    refined, teacher_logits = twin.method.self_teacher(feats)
    soft = F.softmax(teacher_logits.detach() / 4, dim=1)
    attention = sum(
        (attention_map(f) - attention_map(g.detach())).square().mean() for f, g in zip(feats, refined, strict=True)
    )
    expected = {
        "loss_ce": F.cross_entropy(logits, labels),
        "loss_teacher_ce": F.cross_entropy(teacher_logits, labels),
        "loss_kd": 2 * 16 * F.kl_div(F.log_softmax(logits / 4, dim=1), soft, reduction="batchmean"),
        "loss_feat": 100 * attention,
    }
    assert set(report) == set(expected)
    student, teacher = list(twin.student.parameters()), list(twin.method.parameters())
    for name, term in report.items():
        assert term.value == pytest.approx(expected[name].item(), rel=1e-4)
        *maps, on_logits = torch.autograd.grad(
            expected[name], [*feats, logits], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert [norm or 0 for norm in term.maps] == pytest.approx([grad.norm().item() for grad in maps], rel=1e-3)
        assert (term.logits or 0) == pytest.approx(on_logits.norm().item(), rel=1e-3)
        twin.zero_grad()
        expected[name].backward(retain_graph=True)
        for norm, parameters in (
            (term.student, student),
            (term.teacher, teacher),
            (term.classifier, list(twin.student.get_classifier().parameters())),
        ):
            grads = [p.grad.flatten() for p in parameters if p.grad is not None]
            assert (norm is None) == (not grads)
            assert not grads or norm == pytest.approx(torch.cat(grads).norm().item(), rel=1e-3)
    assert [report[name].weight for name in ("loss_kd", "loss_feat", "loss_ce")] == [2, 100, None]
    assert [report[name].targets for name in ("loss_ce", "loss_kd", "loss_feat")] == [None] * 3
    shapes = [((level.channels, *level.size), (level.refined_channels, *level.refined_size)) for level in whole.levels]
    assert shapes == [(feat.shape[1:], other.shape[1:]) for feat, other in zip(feats, refined, strict=True)]
    assert [(level.index, level.stride) for level in whole.levels] == [(1, 4), (2, 8), (4, 32)]


def test_cost_equals_an_independent_count():
    model = wrapped()
    report, double = (check_model(model, *batch(count)) for count in (4, 8))
    student, teacher, cost = model.student, model.method.self_teacher, report.cost
    assert cost.student_parameters == sum(p.numel() for p in student.parameters())
    assert cost.teacher_parameters == sum(p.numel() for p in teacher.parameters())
    assert cost.student_macs == count_macs(student, SIZE)
    assert cost.student_macs + cost.teacher_macs == count_macs(frskd_plugin.unwrap(model, "ensemble"), SIZE)
    assert double.cost.teacher_memory > 1.2 * cost.teacher_memory > 0
    assert (double.cost.teacher_macs, double.cost.student_macs) == (cost.teacher_macs, cost.student_macs)
    share = cost.teacher_macs / cost.student_macs
    assert share > 1 and f"adds {share:.2f} times the student's MACs" in report.warnings[0]


@pytest.mark.parametrize("training", [True, False])
def test_the_callers_model_is_as_before(training):
    model = wrapped(trunk_gradient="linear").train(training)
    model.student.bn1.eval()
    model(*batch())["loss"].backward() if training else None
    before = copy.deepcopy(model.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    model.method.loss_distill.factor = 0.25
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)

    report = check_model(model, *batch())

    assert not report.problems and any("the factor 0.25" in remark for remark in report.remarks)
    assert torch.equal(torch.rand(3), expected[0]) and (random.random(), np.random.rand()) == expected[1:]
    assert same(model.state_dict(), before)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is None if grad is None else torch.equal(parameter.grad, grad)
    assert [module.training for module in model.modules()] == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.method.loss_distill.factor == 0.25 and model.method.trunk_gradient.weight.value == 0.3


@pytest.mark.parametrize(
    ("method", "images", "terms"),
    [
        ("baseline", 3, ["loss_ce"]),
        ("ps_kd", 3, ["loss_ce"]),
        ("dlb", 6, ["loss_ce", "loss_kd"]),
        ("cs_kd", 6, ["loss_ce", "loss_kd"]),
        ("ddgsd", 3, ["loss_ce", "loss_kd", "loss_mean"]),
    ],
)
def test_a_method_is_given_the_batch_that_it_needs_and_left_as_it_was(method, images, terms):
    model = wrapped(method, **({"num_samples": 3} if method == "ps_kd" else {})).eval()
    before, attributes = copy.deepcopy(model.state_dict()), dict(vars(model.method))
    report = check_model(model, batch=3, input_size=SIZE)
    assert report.problems == () and report.images[0] == images
    assert {term.name: term.value > 0 for term in report.terms} == dict.fromkeys(terms, True)
    assert vars(model.method) == attributes and not any(module.training for module in model.modules())
    assert same(model.state_dict(), before)
    with pytest.raises(RuntimeError):
        check_model(model, torch.randn(4, 5, 64, 64), torch.arange(4), extra={"index": torch.arange(4)})
    assert not any(module.training for module in model.modules()) and "student_forward" not in vars(model)


@pytest.mark.parametrize(("num_classes", "method"), [(1, "frskd"), (5, "cs_kd")])
def test_random_targets_fit_the_criterion(num_classes, method):
    model = wrapped(method, num_classes, criterion=nn.BCEWithLogitsLoss())
    assert check_model(model, input_size=SIZE).problems == ()


def test_random_images_have_the_bands_of_the_model():
    assert check_model("test_resnet", method="baseline", model_kwargs={"in_chans": 5}).images[1] == 5
    plain = fcn()
    plain["backbone"]["in_channels"], plain["data_preprocessor"] = 4, {"type": "SegDataPreProcessor", "size": (64, 64)}
    assert prepare(build(with_frskd(plain))).images.shape == (2, 4, 512, 512)


def test_a_method_is_handed_what_it_needs_beside_the_batch():
    model = wrapped("ps_kd", num_samples=4)
    with pytest.raises(ValueError, match="call model\\(images, targets, index=index\\)"):
        check_model(model, *batch())
    assert check_model(model, *batch(), extra={"index": torch.arange(4)}).problems == ()


def test_a_compiled_model_is_looked_into():
    model = wrapped("baseline")
    assert check_model(torch.compile(model), *batch()).terms == check_model(model, *batch()).terms


# Choices are no problems, and what trains may do harm


def test_a_weight_of_zero_and_a_frozen_trunk_are_choices():
    model = wrapped(alpha=0, beta=1e-6, out_indices=(1, 2, 4))
    model.student.requires_grad_(False)
    model.student.get_classifier().requires_grad_(True)
    report = check_model(model, *batch())
    assert report.problems == () and "loss_kd is switched off by its weight of 0" in report.remarks
    assert 0 < terms_of(report)["loss_feat"].value < 1e-5


def test_a_level_of_one_position_is_remarked():
    report = check_model(wrapped(out_indices=(1, 2, 4)), torch.randn(4, 3, 32, 32), torch.arange(4))
    assert report.problems == ()
    assert any("map 4, whose attention map of one position is always 1" in remark for remark in report.remarks)


def test_a_beta_of_another_image_size_is_warned_of():
    settings = {"model_kwargs": {"num_classes": 10}, "input_size": SIZE}
    report = check_model("test_resnet", settings={"alpha": 2, "beta": 100}, **settings)
    size, gradient = report.warnings
    assert not report.healthy and report.problems == ()
    assert "beta=100 is too large for images of 64x64" in size and "(2x2)" in size and "Give beta=6.2 or" in size
    ratios = {int(index): float(times) for index, times in re.findall(r"map (\d): ([\d.]+) times", gradient)}
    terms = terms_of(report)
    for level, own, feature in zip(report.levels, terms["loss_ce"].maps, terms["loss_feat"].maps, strict=True):
        assert ratios[level.index] == pytest.approx(feature / own, rel=0.1)
    cured = check_model("test_resnet", **settings)  # beta 'auto' and the gate
    assert cured.warnings == () and cured.healthy
    assert "the model has schedule='gate'; the step was taken with the whole distillation" in cured.remarks
    assert any("trunk_gradient='linear'; the step was taken with the share of 1" in text for text in cured.remarks)
    assert terms_of(cured)["loss_kd"].value > 0 and terms_of(cured)["loss_feat"].value > 0


def test_the_papers_settings_give_no_warning():
    settings = {"alpha": 2, "beta": 100, "width": 2}
    assert check_model("wrn_16_2", model_kwargs={"num_classes": 100}, settings=settings).healthy


# Planted problems


class Loss(nn.Module):
    """A feature loss made of a function of the student's and the self-teacher's maps."""

    def __init__(self, function) -> None:
        super().__init__()
        self.forward = function


def open_target(feats, refined):
    return sum((attention_map(f) - attention_map(g)).square().mean() for f, g in zip(feats, refined, strict=True))


class OpenKD(FRSKDLoss):
    def forward(self, student_logits, teacher_logits, feats, refined_feats):
        losses = super().forward(student_logits, teacher_logits, feats, refined_feats)
        return losses | {"loss_kd": F.mse_loss(student_logits, teacher_logits)}


def feature_loss(function):
    return lambda model: setattr(model.method.loss_distill, "feature_loss", Loss(function))


def with_dead_map(model: nn.Module) -> None:
    """One that the pass to the logits does not read."""
    plain = model.student.forward_intermediates

    def forward_intermediates(*args, **kwargs):
        last, feats = plain(*args, **kwargs)
        return last, [feats[0], feats[1] * 0, *feats[2:]]

    model.student.forward_intermediates = forward_intermediates


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (feature_loss(open_target), r"target of loss_feat is not detached.*outputs \(norm .*parameters .*`\.detach"),
        (lambda model: setattr(model.method, "loss_distill", OpenKD()), "target of loss_kd is not detached"),
        (
            lambda model: model.method.loss_distill.soft_label_loss.register_forward_hook(lambda *call: 0 * call[-1]),
            "loss_kd is 0 although its weight is 2",
        ),
        (
            lambda model: setattr(model.method.self_teacher, "spare", nn.Linear(2, 2)),
            r"parameters of the method: method\.self_teacher\.spare\.weight, .*DistributedDataParallel",
        ),
        (
            lambda model: setattr(model.student, "spare", nn.Parameter(torch.zeros(3))),
            r"parameters of the student: student\.spare.*freeze them",
        ),
        (feature_loss(lambda feats, _: (feats[0] - feats[0]).sum()), "loss_feat is 0 although its weight is 100"),
        (
            feature_loss(lambda feats, _: feats[0].detach().square().mean()),
            "loss_feat gives the student no gradient.*student's side",
        ),
        (
            lambda model: model.method.self_teacher.neck.register_forward_pre_hook(
                lambda module, inputs: ([feat.detach() for feat in inputs[0]],)
            ),
            "loss_teacher_ce gives the student no gradient: the student's maps are detached",
        ),
        (with_dead_map, r"The student's map 1 \(16x16\) is constant.*`out_indices`"),
        (
            feature_loss(lambda feats, _: 1 + (feats[0] - feats[0]).square().sum().sqrt()),
            r"gradient of loss_feat is not finite.*\(100\)",
        ),
        (feature_loss(lambda feats, _: feats[0].sum() * math.inf), "loss_feat is (nan|-?inf), and one step with it"),
    ],
)
def test_a_planted_problem_is_found(change, problem) -> None:
    model = wrapped()
    change(model)
    report = check_model(model, *batch())
    (text,) = report.problems
    assert re.search(problem, text), text
    assert not report.healthy and text in str(report)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["healthy"] is False


def test_teacher_that_runs_in_evaluation_is_found(monkeypatch):
    model = wrapped()
    plain = type(model).forward

    def forward(self, images, targets=None):
        if self.training:
            return plain(self, images, targets)
        feats, logits = self.student_forward(images)
        return logits + self.method.teacher_logits(feats)

    monkeypatch.setattr(type(model), "forward", forward)
    first, second = check_model(model, *batch()).problems
    assert re.search(r"Evaluation runs the method: method\.self_teacher, .* and \d+ more.*`if self.training`", first)
    assert re.search(r"logits differ from the plain network's by up to \d", second)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="got ResNet. A timm model is checked as frskd_plugin.wrap"):
        check_model(timm.create_model("test_resnet"), *batch())
    with pytest.raises(ValueError, match="`amp` must be one of 'bf16', 'fp16', got 'int8'"):
        check_model(wrapped("baseline"), *batch(), amp="int8")
    for half in ({"images": batch()[0]}, {"targets": batch()[1]}):
        with pytest.raises(TypeError, match="takes images and targets together; without both it makes random ones"):
            check_model(wrapped("baseline"), **half)


# Segmentors


@pytest.mark.parametrize("config", [with_frskd(effdet()), with_frskd(fcn()), fcn()], ids=["effdet", "fcn", "plain"])
def test_segmentor(config):
    model = build(config).eval()
    before = copy.deepcopy(model.state_dict())
    report = check_model(model, *make_batch(size=(128, 128) if "neck" in config else (64, 64)))
    assert report.problems == ()
    teacher = "self_teacher" in config
    terms = terms_of(report)
    assert ("self_teacher.loss_kd" in terms) == (report.evaluation is not None) == teacher
    assert terms["decode.loss_ce"].weight == 1 and terms["decode.loss_ce"].classifier > 0
    if teacher:
        assert terms["self_teacher.loss_feat"].weight == 50
        assert terms["self_teacher.loss_kd"].teacher is None and terms["self_teacher.loss_ce"].teacher > 0
        assert report.cost.teacher_parameters == sum(p.numel() for p in model.self_teacher.parameters())
        assert [level.refined_size for level in report.levels] == [level.size for level in report.levels]
    assert same(model.state_dict(), before) and not any(module.training for module in model.modules())


def test_segmentor_with_an_open_target_and_a_teacher_in_evaluation():
    model = build(with_frskd(fcn()))
    model.self_teacher.loss_distill.feature_loss = Loss(open_target)
    model.predict_self_teacher = True
    first, second = check_model(model, *make_batch()).problems
    assert "target of self_teacher.loss_feat is not detached" in first
    assert re.search("Evaluation runs the method: self_teacher.*predict_self_teacher=False", second)


# The command line


def test_command_on_a_timm_model(tmp_path, capsys):
    file = tmp_path / "new" / "report.json"
    arguments = ["--num-classes", "7", "--input-size", "3", "64", "64", "--batch", "3"]
    settings = ["--set", "alpha=0.5", "out_indices=1,2", "beta=1", "width=1", "--amp", "--json", str(file)]
    assert main(["test_resnet", *arguments, *settings]) == 0
    report = json.loads(file.read_text())
    assert report["problems"] == [] and report["amp"] == "bf16" and report["images"] == [3, 3, 64, 64]
    assert [level["index"] for level in report["levels"]] == [1, 2]
    assert {term["name"]: term["weight"] for term in report["terms"]}["loss_kd"] == 0.5
    text = capsys.readouterr().out
    assert all(part in text for part in ("Matched levels", "method adds", "loss_feat", "Healthy"))


def test_exit_status_of_a_problem_and_json_alone(capsys, monkeypatch):
    monkeypatch.setattr(
        "frskd_plugin.core.feature_losses.attention_maps",
        lambda feats, others: [x.mean(1).flatten(1) * 0 for x in (*feats, *(y.detach() for y in others))],
    )
    assert main(["test_resnet", "--input-size", "3", "64", "64", "--json"]) == 1
    printed = capsys.readouterr()
    assert re.search(r"1 PROBLEM\n  1. loss_feat is 0 although its weight is \d", printed.err)
    assert json.loads(printed.out)["healthy"] is False


def test_a_step_that_fails_is_a_problem(capsys, tmp_path, monkeypatch):
    config, file = str(ROOT / "configs/frskd_camvid_fcn_r18.py"), tmp_path / "report.json"
    order = ["model.self_teacher.feat_indices=[1,0,2,3]", "model.self_teacher.neck.in_channels=[128,64,256,512]"]
    assert main([config, "--input-size", "3", "64", "64", "--cfg-options", *order, "--json", str(file)]) == 1
    assert "the training step fails with ValueError: " in capsys.readouterr().out
    problem = "takes feature maps highest resolution first, got 8x8, 16x16, 8x8, 8x8"
    assert problem in json.loads(file.read_text())["problems"][0]

    def fail(*arguments):
        raise AssertionError

    monkeypatch.setattr("frskd_plugin.commands.check.dry_run", fail)
    assert main(["test_resnet"]) == 1
    assert "with AssertionError: raise AssertionError (test_check.py, line " in capsys.readouterr().out


def test_old_names_still_work():
    with pytest.warns(DeprecationWarning):
        from frskd_plugin.doctor import describe, examine
    report = examine(wrapped("baseline"), *batch())
    assert describe(report) == str(report)
    with pytest.warns(DeprecationWarning, match="problems"):
        assert report.faults == report.problems


def test_segmentor_config(capsys):
    assert main([str(ROOT / "configs/frskd_voc_effdet_d0.py"), "--input-size", "3", "128", "128"]) == 0
    text = capsys.readouterr().out
    assert "factor 0 before epoch 40; this step was taken at factor 1" in text
    assert "random weights stand in for the pretrained ones" in text
    assert "self_teacher.loss_feat      50" in text
    assert "1 WARNING\n  1. beta=50 is too large for images of 128x128" in text


def test_config_that_allows_unused_parameters(capsys, tmp_path):
    file = tmp_path / "plain.py"
    Config(dict(model=effdet(), default_scope="mmseg", find_unused_parameters=True)).dump(file)
    assert main([str(file), "--input-size", "3", "128", "128"]) == 0
    assert "no gradient, as the config's find_unused_parameters=True allows: neck." in capsys.readouterr().out


def test_classifier_config(tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(
        "custom_imports = dict(imports=['frskd_plugin'])\n"
        "model = dict(type='TimmClassifier', student=dict(model_name='test_resnet', num_classes=5, pretrained=True),\n"
        "             method=dict(name='frskd', alpha=3.0), input_size=(3, 64, 64), mix=dict(type='Mixup', alpha=1),\n"
        "             compile=dict(backend='no such one'))\n"
    )
    assert main([str(file), "--cfg-options", "model.method.beta=20.0"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"loss_kd +3 .*\n +loss_feat +20 ", text)
    assert "random weights stand in" in text


def test_config_with_a_teacher(tmp_path, capsys):
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "teacher.pth")
    teacher = dict(model_name="test_resnet", checkpoint=str(tmp_path / "teacher.pth"))
    student = dict(model_name="test_resnet", num_classes=5)
    model = dict(type="TimmClassifier", student=student, method=dict(name="kd", teacher=teacher), input_size=SIZE)
    Config(dict(model=model)).dump(tmp_path / "config.py")
    assert main([str(tmp_path / "config.py")]) == 0
    text = capsys.readouterr().out
    assert "loss_kd" in text and "random weights stand in" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet99"], "has no model 'resnet99'. Did you mean"),
        (["missing.py"], "config missing.py not found"),
        (["test_resnet", "--method", "nope"], "`method` must be one of .*'frskd'"),
        (["test_resnet", "--set", "gamma=2"], "no setting 'gamma'; its settings are: alpha"),
        (["test_resnet", "--device", "nowhere"], "device 'nowhere' cannot be used here"),
        (["test_resnet", "--cfg-options", "a=1"], "--cfg-options belongs to a config"),
        ([str(ROOT / "configs/frskd_camvid_fcn_r18.py"), "--set", "a=1"], "--set belongs to a timm model"),
        ([str(ROOT / "configs/_base_/default_runtime.py")], "has no `model`"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys):
    assert run("check", arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)
