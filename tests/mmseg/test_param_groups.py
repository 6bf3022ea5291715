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
def model():
    return build(with_frskd(fcn()))


def test_stock_rule_for_heads_reaches_the_whole_self_teacher(model):
    expected, _ = settings_of(build(fcn()), paramwise_cfg={"custom_keys": RULES})
    found, order = settings_of(model, paramwise_cfg={"custom_keys": RULES})
    assert {name: found[name] for name in expected} == expected
    teacher = {value for name, value in found.items() if name.startswith("self_teacher.")}
    assert teacher == {expected["decode_head.conv_seg.weight"]} == {(10.0, 0.5)}
    assert all(a is b for a, b in zip(order, model.parameters(), strict=True))  # the order of a stored optimizer state


BASE = {"base": "ForceDefaultOptimWrapperConstructor", "custom_keys": RULES}


@pytest.mark.parametrize(
    ("config", "teacher", "head"),
    [
        ({}, {(1.0, 0.5)}, (1.0, 0.5)),
        # a rule for the self-teacher comes first
        ({"paramwise_cfg": {"custom_keys": {**RULES, "self_teacher": {"lr_mult": 2.0}}}}, {(2.0, 0.5)}, (10.0, 0.5)),
        # by kind of layer: norms and the rest, in both
        ({"paramwise_cfg": {"norm_decay_mult": 0.0}}, {(1.0, 0.0), (1.0, 0.5)}, (1.0, 0.5)),
        # another constructor as the base
        ({"constructor": "SelfTeacherOptimWrapperConstructor", "paramwise_cfg": BASE}, {(10.0, 0.5)}, (10.0, 0.5)),
    ],
)
def test_other_rules(model, config, teacher, head):
    found, _ = settings_of(model, **config)
    assert {value for name, value in found.items() if name.startswith("self_teacher.")} == teacher
    assert found["decode_head.conv_seg.weight"] == head
