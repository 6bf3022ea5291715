"""The doctor: a healthy model passes, each planted fault is found, its figures are right, nothing is left changed."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import frskd_plugin
from frskd_plugin.core import FRSKDLoss, attention_map
from frskd_plugin.doctor import describe, examine
from frskd_plugin.doctor.command import main
from frskd_plugin.methods import StudentInfo
from frskd_plugin.methods.teacher_width import teacher_share
from frskd_plugin.timm.probe import probe_student
from tests.helpers.segmentors import build, effdet, fcn, make_batch, with_frskd

ROOT = Path(__file__).parents[2]
SIZE = (3, 64, 64)
CLASSES = 10


def wrapped(method: str = "frskd", **settings) -> nn.Module:
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=CLASSES)
    return frskd_plugin.wrap(student, method, input_size=SIZE, **settings)


def batch(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *SIZE, generator=generator), torch.arange(count)


def terms_of(report) -> dict:
    return {term.name: term for term in report.terms}


def only_fault(report, pattern: str) -> None:
    assert len(report.faults) == 1, report.faults
    assert re.search(pattern, report.faults[0]), report.faults[0]
    assert not report.healthy
    assert report.faults[0] in describe(report)


# A healthy model


@pytest.mark.parametrize(
    ("settings", "amp"), [({}, None), ({}, "bf16"), ({"variant": "equations"}, None), ({"width": "auto"}, None)]
)
def test_healthy(settings, amp):
    report = examine(wrapped(**settings), *batch(), amp=amp)
    assert report.faults == ()
    assert "Verdict: healthy" in describe(report)
    assert report.evaluation.ran == () and report.evaluation.difference == 0


def test_levels_are_matched():
    model = wrapped(out_indices=(1, 2, 4), width=2)
    report = examine(model, *batch())
    feats, _ = model.student_forward(batch()[0])
    assert [level.index for level in report.levels] == [1, 2, 4]
    assert [level.channels for level in report.levels] == [feat.shape[1] for feat in feats]
    assert [level.size for level in report.levels] == [tuple(feat.shape[2:]) for feat in feats]
    assert [level.stride for level in report.levels] == [4, 8, 32]
    assert [level.refined_channels for level in report.levels] == [2 * feat.shape[1] for feat in feats]
    assert [level.refined_size for level in report.levels] == [level.size for level in report.levels]


def test_values_and_norms_equal_an_independent_computation():
    model, (images, labels) = wrapped(), batch()
    report = terms_of(examine(model, images, labels))
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


def test_distillation_stops_at_the_teacher_and_its_own_loss_does_not():
    terms = terms_of(examine(wrapped(), *batch()))
    assert [terms[name].teacher for name in ("loss_ce", "loss_kd", "loss_feat")] == [None] * 3
    assert [terms[name].targets for name in ("loss_ce", "loss_kd", "loss_feat")] == [None] * 3
    assert terms["loss_teacher_ce"].teacher > 0 and terms["loss_teacher_ce"].classifier is None
    assert all(norm > 0 for norm in terms["loss_teacher_ce"].maps)


def test_cost_equals_an_independent_count():
    model = wrapped()
    cost = examine(model, *batch()).cost
    assert cost.student_parameters == sum(p.numel() for p in model.student.parameters())
    assert cost.teacher_parameters == sum(p.numel() for p in model.method.self_teacher.parameters())
    probe = probe_student(model.student, SIZE)
    assert cost.student_macs == probe.macs
    maps = [probe.maps[i] for i in model.out_indices]
    info = StudentInfo(
        module=model.student,
        in_channels=[channels for channels, *_ in maps],
        map_sizes=[(height, width) for _, height, width in maps],
        num_classes=CLASSES,
        macs=probe.macs,
        input_size=SIZE,
    )
    assert cost.teacher_macs / cost.student_macs == pytest.approx(teacher_share(info, 2), rel=1e-3)
    double = examine(model, *batch(8)).cost
    assert double.teacher_memory > 1.2 * cost.teacher_memory > 0
    assert (double.teacher_macs, double.student_macs) == (cost.teacher_macs, cost.student_macs)


@pytest.mark.parametrize("training", [True, False])
def test_the_callers_model_is_as_before(training):
    model = wrapped().train(training)
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

    report = examine(model, *batch())

    assert report.healthy and any("factor 0.25" in remark for remark in report.remarks)
    assert torch.equal(torch.rand(3), expected[0]) and (random.random(), np.random.rand()) == expected[1:]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is None if grad is None else torch.equal(parameter.grad, grad)
    assert [module.training for module in model.modules()] == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.method.loss_distill.factor == 0.25


def test_the_models_are_as_before_when_the_step_fails():
    model = wrapped().eval()
    with pytest.raises(RuntimeError):
        examine(model, torch.randn(4, 5, 64, 64), torch.arange(4))
    assert not any(module.training for module in model.modules())
    assert "student_forward" not in vars(model)


@pytest.mark.parametrize("method", ["baseline", "byot", "ddgsd", "frskd_sla", "dlb"])
def test_other_methods_are_examined_too(method):
    model, (images, labels) = wrapped(method), batch()
    if model.method.needs.views > 1:
        images = torch.stack([images, images.flip(3)], dim=1)
    attributes = dict(vars(model.method))
    report = examine(model, images, labels)
    assert report.healthy, report.faults
    assert describe(report).startswith(f"ResNet, {type(model.method).__name__}")
    assert vars(model.method) == attributes
    assert terms_of(report)["loss_ce"].logits > 0


@pytest.mark.parametrize(
    ("method", "images", "terms"),
    [
        ("ps_kd", 3, ["loss_ce"]),
        ("dlb", 6, ["loss_ce", "loss_kd"]),
        ("cs_kd", 6, ["loss_ce", "loss_kd"]),
        ("ddgsd", 3, ["loss_ce", "loss_kd", "loss_mean"]),
    ],
)
def test_the_command_gives_a_method_the_batch_that_it_needs(method, images, terms, tmp_path):
    file = tmp_path / "report.json"
    arguments = ["test_resnet", "--method", method, "--batch", "3", "--input-size", "3", "64", "64"]
    assert main([*arguments, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["images"][0] == images
    assert {term["name"]: term["value"] > 0 for term in report["terms"]} == dict.fromkeys(terms, True)


def test_examine_hands_on_what_a_method_is_given_beside_the_batch():
    model = wrapped("ps_kd", num_samples=4)
    with pytest.raises(ValueError, match="call model\\(images, targets, index=index\\)"):
        examine(model, *batch())
    report = examine(model, *batch(), extra={"index": torch.arange(4)})
    assert report.healthy, report.faults
    known = model.method.predictions.read(torch.arange(4)).sum(dim=1)
    assert known.tolist() == [0.0] * 4  # the table is as before


def test_a_compiled_model_is_looked_into():
    model = wrapped()
    assert examine(torch.compile(model), *batch()).terms == examine(model, *batch()).terms


# Choices are no faults


def test_a_weight_of_zero_is_a_choice():
    report = examine(wrapped(alpha=0, beta=1e-6), *batch())
    assert report.healthy
    assert "loss_kd is switched off by its weight of 0" in report.remarks
    assert 0 < terms_of(report)["loss_feat"].value < 1e-5


def test_a_frozen_trunk_is_a_choice():
    model = wrapped()
    model.student.requires_grad_(False)
    model.student.get_classifier().requires_grad_(True)
    assert examine(model, *batch()).healthy


def test_a_level_of_one_position_is_remarked():
    model = wrapped(out_indices=(1, 2, 4))
    report = examine(model, torch.randn(4, 3, 32, 32), torch.arange(4))
    assert report.healthy
    assert any("map 4, whose attention map of one position is always 1" in remark for remark in report.remarks)


# Planted faults


class OpenFeatureLoss(nn.Module):
    def forward(self, feats, refined_feats):
        return sum(
            (attention_map(f) - attention_map(g)).square().mean() for f, g in zip(feats, refined_feats, strict=True)
        )


class OpenKD(FRSKDLoss):
    def forward(self, student_logits, teacher_logits, feats, refined_feats):
        losses = super().forward(student_logits, teacher_logits, feats, refined_feats)
        return losses | {"loss_kd": F.mse_loss(student_logits, teacher_logits)}


def test_open_feature_target_is_found():
    report = examine(wrapped(feature_loss=OpenFeatureLoss()), *batch())
    only_fault(report, r"target of loss_feat is not detached.* its outputs \(norm .*its parameters .*`\.detach\(\)`")


def test_open_logits_target_is_found():
    model = wrapped()
    model.method.loss_distill = OpenKD()
    only_fault(examine(model, *batch()), "target of loss_kd is not detached")


def test_unused_teacher_parameter_is_found():
    model = wrapped()
    model.method.self_teacher.spare = nn.Linear(2, 2)
    only_fault(
        examine(model, *batch()),
        r"2 parameters of the method get no gradient.*method\.self_teacher\.spare\.weight, .*DistributedDataParallel",
    )


def test_unused_student_parameter_is_found():
    model = wrapped()
    model.student.spare = nn.Parameter(torch.zeros(3))
    only_fault(examine(model, *batch()), r"1 parameter of the student require.*student\.spare.*freeze it")


def test_dead_map_is_found():
    model = wrapped(out_indices=(1, 2, 4))
    model.student.layer2.register_forward_hook(lambda module, inputs, output: output * 0)
    faults = examine(model, *batch()).faults
    assert any(re.search(r"The student's map 2 \(8x8\) is constant.*`out_indices`", fault) for fault in faults)
    assert not any("map 1 " in fault for fault in faults)


def test_zero_term_with_a_weight_is_found():
    class Same(nn.Module):
        def forward(self, feats, refined_feats):
            return (feats[0] - feats[0]).sum()

    only_fault(examine(wrapped(feature_loss=Same()), *batch()), "loss_feat is 0 although its weight is 100")


def test_detached_student_side_is_found():
    class Idle(nn.Module):
        def forward(self, feats, refined_feats):
            return feats[0].detach().square().mean()

    only_fault(
        examine(wrapped(feature_loss=Idle()), *batch()), "loss_feat gives the student no gradient.*student's side"
    )


def test_maps_that_enter_the_teacher_detached_are_found():
    model = wrapped()
    teacher = model.method.self_teacher.neck
    teacher.register_forward_pre_hook(lambda module, inputs: ([feat.detach() for feat in inputs[0]],))
    only_fault(
        examine(model, *batch()), "loss_teacher_ce gives the student no gradient: the student's maps are detached"
    )


def test_infinite_loss_is_found():
    class Infinite(nn.Module):
        def forward(self, feats, refined_feats):
            return feats[0].sum() * math.inf

    report = examine(wrapped(feature_loss=Infinite()), *batch())
    assert any("loss_feat is nan" in fault or "loss_feat is inf" in fault for fault in report.faults)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["healthy"] is False


def test_gradient_that_is_not_finite_is_found():
    class Root(nn.Module):
        def forward(self, feats, refined_feats):
            return 1 + (feats[0] - feats[0]).square().sum().sqrt()

    only_fault(examine(wrapped(feature_loss=Root()), *batch()), r"gradient of loss_feat is not finite.*\(100\)")


def test_teacher_that_runs_in_evaluation_is_found(monkeypatch):
    model = wrapped()
    plain = type(model).forward

    def forward(self, images, targets=None):
        if self.training:
            return plain(self, images, targets)
        feats, logits = self.student_forward(images)
        return logits + self.method.teacher_logits(feats)

    monkeypatch.setattr(type(model), "forward", forward)
    first, second = examine(model, *batch()).faults
    assert re.search(r"Evaluation runs the method: method\.self_teacher, .* and \d+ more.*`if self.training`", first)
    assert re.search(r"logits differ from the plain network's by up to \d", second)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="got ResNet. A timm model is examined as frskd_plugin.wrap"):
        examine(timm.create_model("test_resnet"), *batch())
    with pytest.raises(ValueError, match="`amp` must be one of 'bf16', 'fp16' or None, got 'int8'"):
        examine(wrapped(), *batch(), amp="int8")


# Segmentors


@pytest.mark.parametrize("config", [with_frskd(effdet()), with_frskd(fcn()), fcn()], ids=["effdet", "fcn", "plain"])
def test_segmentor(config):
    model = build(config).eval()
    before = copy.deepcopy(model.state_dict())
    report = examine(model, *make_batch(size=(128, 128)))
    assert report.healthy, report.faults
    teacher = "self_teacher" in config
    terms = terms_of(report)
    assert ("self_teacher.loss_kd" in terms) == (report.evaluation is not None) == teacher
    assert terms["decode.loss_ce"].weight == 1 and terms["decode.loss_ce"].classifier > 0
    if teacher:
        assert terms["self_teacher.loss_feat"].weight == 50
        assert terms["self_teacher.loss_kd"].teacher is None and terms["self_teacher.loss_ce"].teacher > 0
        assert report.cost.teacher_parameters == sum(p.numel() for p in model.self_teacher.parameters())
        assert [level.refined_size for level in report.levels] == [level.size for level in report.levels]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_segmentor_with_an_open_target_and_a_teacher_in_evaluation():
    model = build(with_frskd(fcn()))
    model.self_teacher.loss_distill.feature_loss = OpenFeatureLoss()
    model.predict_self_teacher = True
    first, second = examine(model, *make_batch()).faults
    assert "target of self_teacher.loss_feat is not detached" in first
    assert re.search("Evaluation runs the method: self_teacher.*predict_self_teacher=False", second)


# The command line


def test_command_on_a_timm_model(tmp_path, capsys):
    file = tmp_path / "new" / "report.json"
    arguments = ["--num-classes", "7", "--input-size", "3", "64", "64", "--batch", "3"]
    settings = ["--set", "alpha=0.5", "out_indices=1,2", "--amp", "--json", str(file)]
    assert main(["test_resnet", *arguments, *settings]) == 0
    report = json.loads(file.read_text())
    assert report["healthy"] and report["amp"] == "bf16" and report["images"] == [3, 3, 64, 64]
    assert [level["index"] for level in report["levels"]] == [1, 2]
    assert {term["name"]: term["weight"] for term in report["terms"]}["loss_kd"] == 0.5
    text = capsys.readouterr().out
    assert all(part in text for part in ("Matched levels", "method adds", "loss_feat", "Verdict: healthy"))


def test_json_alone_goes_to_stdout(capsys):
    assert main(["test_resnet", "--input-size", "3", "64", "64", "--method", "baseline", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["method"] == "Baseline" and "Verdict" in printed.err


def test_exit_status_of_a_fault(capsys, monkeypatch):
    monkeypatch.setattr("frskd_plugin.core.attention.attention_map", lambda feat: feat.mean(1) * 0)
    assert main(["test_resnet", "--input-size", "3", "64", "64"]) == 1
    assert "Verdict: 1 FAULT\n  1. loss_feat is 0 although its weight is 100" in capsys.readouterr().out


def test_a_step_that_fails_is_a_fault(capsys, tmp_path):
    file = tmp_path / "report.json"
    options = ["--cfg-options", "model.self_teacher.neck.in_channels=[64,128,256,9]", "--json", str(file)]
    config = str(ROOT / "configs/frskd_camvid_fcn_r18.py")
    assert main([config, "--input-size", "3", "64", "64", *options]) == 1
    assert "the training step fails with ValueError: " in capsys.readouterr().out
    assert "feature map 3 must have 9 channels, got 512" in json.loads(file.read_text())["faults"][0]


@pytest.mark.parametrize("run", [runpy.run_module, runpy.run_path])
def test_module_and_tool_are_one_command(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["doctor", "--help"])
    name = "frskd_plugin.doctor" if run is runpy.run_module else str(ROOT / "tools" / "doctor.py")
    with pytest.raises(SystemExit) as caught:
        run(name, run_name="__main__")
    assert caught.value.code == 0
    assert "MODEL|CONFIG" in capsys.readouterr().out


def test_segmentor_config(capsys):
    assert main([str(ROOT / "configs/frskd_voc_effdet_d0.py"), "--input-size", "3", "128", "128"]) == 0
    text = capsys.readouterr().out
    assert "factor 0 before epoch 40; this step was taken at factor 1" in text
    assert "random weights stand in for the pretrained ones" in text
    assert "self_teacher.loss_feat      50" in text


def test_config_that_allows_unused_parameters(capsys):
    assert main([str(ROOT / "configs/baseline_voc_effdet_d0.py"), "--input-size", "3", "128", "128"]) == 0
    assert "25 parameters of the student get no gradient, as the config's find_unused_par" in capsys.readouterr().out


@pytest.mark.parametrize("mix", ["None", "dict(type='Mixup', alpha=0.2), compile=dict(backend='no such one')"])
def test_classifier_config(tmp_path, capsys, mix):
    file = tmp_path / "config.py"
    file.write_text(
        "custom_imports = dict(imports=['frskd_plugin'])\n"
        "model = dict(type='TimmClassifier', student=dict(model_name='test_resnet', num_classes=5, pretrained=True),\n"
        f"             method=dict(name='frskd', alpha=3.0), input_size=(3, 64, 64), mix={mix})\n"
    )
    assert main([str(file), "--cfg-options", "model.method.beta=20.0"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"loss_kd +3 .*\n +loss_feat +20 ", text)
    assert "random weights stand in" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet99"], "has no model 'resnet99'. Did you mean"),
        (["missing.py"], "config missing.py not found"),
        (["test_resnet", "--method", "nope"], "`method` must be one of .*'frskd'"),
        (["test_resnet", "--set", "gamma=2"], "no setting 'gamma'; its settings are: alpha"),
        (["test_resnet", "--set", "gamma"], "'gamma' is not KEY=VALUE, such as alpha=2"),
        (["test_resnet", "--batch", "0"], "'0' is not a whole number above 0"),
        (["test_resnet", "--device", "nowhere"], "device 'nowhere' cannot be used here"),
        (["test_resnet", "--cfg-options", "a=1"], "--cfg-options belongs to a config"),
        ([str(ROOT / "configs/frskd_camvid_fcn_r18.py"), "--set", "a=1"], "--set belongs to a timm model"),
        ([str(ROOT / "configs/_base_/default_runtime.py")], "has no `model`"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error)
