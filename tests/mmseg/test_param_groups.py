"""The self-teacher's parameters get the optimizer's settings of the student's head, whatever rules a config has."""

from __future__ import annotations

import pytest
from mmengine.optim import build_optim_wrapper

from tests.helpers.segmentors import build, fcn, with_frskd

RULES = {"norm": {"decay_mult": 0.0}, "head": {"lr_mult": 10.0}, "neck": {"lr_mult": 3.0}}


def settings_of(model, **config):
    """Learning rate and weight decay of each parameter, by name, and the groups' parameters in order."""
    config = {"optimizer": {"type": "AdamW", "lr": 1.0, "weight_decay": 0.5}, **config}
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters()}, [p for g in groups for p in g["params"]]


@pytest.fixture(scope="module")
def models():
    return build(fcn()), build(with_frskd(fcn()))


def test_stock_rule_for_heads_reaches_the_whole_self_teacher(models):
    plain, frskd = models
    expected, _ = settings_of(plain, paramwise_cfg={"custom_keys": RULES})
    found, order = settings_of(frskd, paramwise_cfg={"custom_keys": RULES})
    assert {name: found[name] for name in expected} == expected
    teacher = {value for name, value in found.items() if name.startswith("self_teacher.")}
    assert teacher == {expected["decode_head.conv_seg.weight"]} == {(10.0, 0.5)}
    assert all(a is b for a, b in zip(order, frskd.parameters(), strict=True))  # the order of a stored optimizer state


def test_a_rule_for_the_self_teacher_comes_first(models):
    rules = {**RULES, "self_teacher": {"lr_mult": 2.0}}
    found, _ = settings_of(models[1], paramwise_cfg={"custom_keys": rules})
    assert {value[0] for name, value in found.items() if name.startswith("self_teacher.")} == {2.0}
    assert found["decode_head.conv_seg.weight"][0] == 10.0


def test_rules_by_kind_of_layer_and_no_rules_stay(models):
    found, _ = settings_of(models[1], paramwise_cfg={"norm_decay_mult": 0.0})
    decayed = {name for name, value in found.items() if value[1]}
    assert "self_teacher.head.conv_seg.weight" in decayed
    assert not any(".bn" in name or "norm" in name for name in decayed)
    assert set(settings_of(models[1])[0].values()) == {(1.0, 0.5)}


def test_another_constructor_can_be_the_base(models):
    found, _ = settings_of(
        models[1],
        constructor="SelfTeacherOptimWrapperConstructor",
        paramwise_cfg={"base": "ForceDefaultOptimWrapperConstructor", "custom_keys": RULES},
    )
    assert {value[0] for name, value in found.items() if name.startswith(("self_teacher.", "decode_head."))} == {10.0}
