"""The config in a checkpoint is a stranger's text: it is parsed, and leads to no import that the user did not allow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from frskd_plugin.commands.attention_maps import TrainedNetwork
from frskd_plugin.mmengine.export import export_student
from frskd_plugin.mmengine.stored_config import parse_config, stored_config, stored_text

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["frskd_voc_effdet_d0", "frskd_cifar100_wrn_16_2"])
def test_a_dumped_config_is_what_executing_it_gives(name: str) -> None:
    config = Config.fromfile(CONFIGS / f"{name}.py", import_custom_modules=False)
    assert parse_config(config.pretty_text, "it") == Config.fromstring(config.pretty_text, ".py").to_dict()


def test_all_that_a_dump_may_hold() -> None:
    text = (
        '"""A title."""\na = -1.5e-3\nb = dict(x=(1, -2), y=[None, True], z={"k.1": {1, 2}}, w=dict({"a-b": 1}, c=2))\n'
        "c = a\nd = [b, -inf]\n"
    )
    settings = parse_config(text, "it")
    assert settings["a"] == settings["c"] == -1.5e-3 and settings["d"][1] == -float("inf")
    assert settings["b"] == {"x": (1, -2), "y": [None, True], "z": {"k.1": {1, 2}}, "w": {"a-b": 1, "c": 2}}


@pytest.mark.parametrize(
    "line",
    [
        "open('x', 'w').close()",
        "import os",
        "a = __import__('os')",
        "a = dict(b=[open('x')])",
        "a = dict(**{'b': 1})",
        "a = ().__class__",
        "a = -dict()",
        "a.b = 1",
        "a = b = 1",
        "a = unknown",
        "a = [i for i in range(9)]",
        "a = 9**9**9",
        "a = f'{1}'",
        "a = (lambda: 1)()",
        "a = dict.fromkeys('ab')",
        "a = x" + ".y" * 900,
        "with open('x') as f: pass",
        "a: int = 1",
        "del a",
    ],
)
def test_code_is_named_and_not_run(line: str) -> None:
    with pytest.raises(ValueError, match="it holds .* in line 2, which is code and was not run; expected data alone"):
        parse_config(f"seed = 1\n{line}\n", "it")


@pytest.mark.parametrize("text", ["model = (", "a\0b = 1", "a = " + "[" * 500 + "]" * 500, "a = {[]: 1}"])
def test_text_that_is_no_config(text: str) -> None:
    with pytest.raises(ValueError, match="it cannot be read as a config|which is code"):
        parse_config(text, "it")


def test_lists_of_lists_of_one_list_are_refused_before_they_are_walked_through() -> None:
    lines = ["a0 = [1]", *(f"a{i} = [{', '.join([f'a{i - 1}'] * 10)}]" for i in range(1, 30))]
    with pytest.raises(ValueError, match=r"it cannot be read .*a6 written out has more than 1000000 parts"):
        parse_config("\n".join(lines), "it")
    assert len(parse_config("\n".join(lines[:5]), "it")["a4"]) == 10
    for part, line in (("a4.append", "a30 = [a4, dict(b=a4.append)]"), ("-a4", "a30 = -a4"), ("a4[0]", "a4[0]")):
        with pytest.raises(ValueError, match=f"it holds '{re.escape(part)}' in line 6, which is code"):
            parse_config("\n".join([*lines[:5], line]), "it")


@pytest.mark.parametrize("meta", [5, [1], {"cfg": 3}])
def test_meta_of_another_kind(meta: Any) -> None:
    with pytest.raises(ValueError, match="a.pth: its 'meta' is not that of a checkpoint of mmengine"):
        stored_text({"meta": meta}, "a.pth")


def test_no_config() -> None:
    assert stored_text({"state_dict": {}}, "a.pth") is None
    with pytest.raises(ValueError, match="does not hold the config it was trained with"):
        stored_config({"meta": {}}, "a.pth")
    with pytest.raises(ValueError, match="has no model=dict"):
        stored_config({"meta": {"cfg": "a = 1"}}, "a.pth")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("custom_imports = dict(imports=['antigravity'])", "antigravity"),
        ("custom_imports = dict(imports='this')", "this"),
        ("hook = dict(type='subprocess.Popen', args=['touch', 'x'])", "subprocess.Popen"),
        ("hook = [dict(a=(dict(type='antigravity'),))]", "antigravity"),
        ("hook = dict(type='mmengine.load', file='http://localhost/x.pkl')", "mmengine.load"),
        ("default_scope = 'antigravity'", "antigravity"),
        ("hook = dict(type='ResNet', _scope_='this')", "this"),
        ("teacher = dict(model_name='hf-hub:somebody/model')", "hf-hub:somebody/model"),
    ],
)
def test_imports_need_the_users_word(text: str, named: str) -> None:
    cfg = f"model = dict(type='TimmClassifier')\n{text}\n"
    with pytest.raises(ValueError, match=f"would import or fetch {named}: give --allow-imports if you trust the file"):
        stored_config({"meta": {"cfg": cfg}}, "a.pth")
    assert "antigravity" not in sys.modules and "this" not in sys.modules


def test_imports_that_the_user_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_module_of_a_test.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = "model = dict(type='A')\ncustom_imports = dict(imports=['their_module_of_a_test'])\n"
    assert stored_config({"meta": {"cfg": cfg}}, "a.pth", allow_imports=True).model.type == "A"
    assert sys.modules.pop("their_module_of_a_test").LOADED
    cfg = cfg.replace("type='A'", "type='TimmClassifier', student=dict(model_name='test_resnet')")
    torch.save({"state_dict": {"student.a": torch.ones(1)}, "meta": {"cfg": cfg}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="give --allow-imports"):
        export_student(tmp_path / "a.pth", tmp_path / "b.pth")
    assert export_student(tmp_path / "a.pth", tmp_path / "b.pth", allow_imports=True).path.is_file()
    assert sys.modules.pop("their_module_of_a_test").LOADED


def test_a_network_is_not_built_of_any_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(subprocess, "call", lambda *args, **kwargs: called.append(args))
    cfg = "model = dict(type='TimmClassifier', student=dict(type='subprocess.call', args=['touch']))"
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": {"cfg": cfg}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="would import or fetch subprocess.call: give --allow-imports"):
        TrainedNetwork(tmp_path / "a.pth")
    assert not called
