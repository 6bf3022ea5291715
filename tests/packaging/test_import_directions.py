"""The static check of the directions of imports: the package passes it, and it finds what it is for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("check_imports", ROOT / "scripts" / "check_imports.py")
check_imports = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = check_imports  # dataclasses looks its module up
spec.loader.exec_module(check_imports)


def test_the_package_keeps_the_directions():
    assert check_imports.check_package(ROOT / "frskd_plugin") == []


@pytest.fixture
def check(tmp_path):
    """Checks one module with the given source and gives back the texts of the violations."""

    def check_source(name: str, source: str) -> list[str]:
        path = tmp_path / "frskd_plugin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return [text.split(": ", 1)[1] for text in check_imports.check_package(tmp_path / "frskd_plugin")]

    return check_source


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("__init__.py", "import importlib\nfrom frskd_plugin.version import __version__\n"),
        (
            "__init__.py",
            '"""Never mmdet."""\nimport importlib\nimportlib.import_module("frskd_plugin.mmengine")\n',
        ),
        ("core/loss.py", "import math\nimport torch.nn.functional as F\nfrom frskd_plugin.core.resize import resize\n"),
        ("core/loss.py", "from torch import nn\nfrom .resize import resize\n"),
        ("methods/kd.py", "from frskd_plugin.core import FRSKDLoss\n"),
        ("timm/wrap.py", "import timm\nfrom frskd_plugin.core import FRSKDLoss\nfrom frskd_plugin.timm import cifar\n"),
        ("mmengine/hook.py", "from mmengine.hooks import Hook\nfrom frskd_plugin.timm.wrap import wrap\n"),
        ("benchmark/step.py", "import frskd_plugin\nfrom frskd_plugin.mmseg.head import FRSKDHead\n"),
        ("mmseg/head.py", "from mmseg.models import build\nfrom frskd_plugin.mmengine import registration\n"),
    ],
)
def test_allowed(check, name, source):
    assert check(name, source) == []


@pytest.mark.parametrize(
    ("name", "source", "culprit"),
    [
        ("core/loss.py", "import numpy as np\n", "frskd_plugin.core must not import numpy"),
        ("core/loss.py", "def f():\n    import timm\n", "frskd_plugin.core must not import timm"),
        ("core/loss.py", "from frskd_plugin.timm import wrap\n", "frskd_plugin.core must not import frskd_plugin.timm"),
        ("core/loss.py", "from frskd_plugin import timm\n", "frskd_plugin.core must not import frskd_plugin.timm"),
        ("core/loss.py", "from ..timm import wrap\n", "frskd_plugin.core must not import frskd_plugin.timm"),
        ("core/__init__.py", "from ..mmseg import x\n", "frskd_plugin.core must not import frskd_plugin.mmseg"),
        ("methods/kd.py", "import timm\n", "frskd_plugin.methods must not import timm"),
        (
            "timm/wrap.py",
            "from mmengine.registry import MODELS\n",
            "frskd_plugin.timm must not import mmengine.registry",
        ),
        ("timm/wrap.py", "import frskd_plugin.mmseg\n", "frskd_plugin.timm must not import frskd_plugin.mmseg"),
        ("mmengine/hook.py", "import mmseg\n", "frskd_plugin.mmengine must not import mmseg"),
        ("mmseg/head.py", "import frskd_plugin\n", "frskd_plugin.mmseg must not import frskd_plugin"),
        ("mmseg/head.py", "import mmdet\n", "frskd_plugin.mmseg must not import mmdet"),
        ("mmdet/head.py", "import frskd_plugin.mmseg\n", "frskd_plugin.mmdet must not import frskd_plugin.mmseg"),
        ("__init__.py", "import torch\n", "the root of frskd_plugin must not import torch"),
        ("__init__.py", "import timm\n", "the root of frskd_plugin must not import timm"),
        ("__init__.py", "import frskd_plugin.timm\n", "the root of frskd_plugin must not import frskd_plugin.timm"),
        (
            "__init__.py",
            "import frskd_plugin.mmengine\n",
            "the root of frskd_plugin must not import frskd_plugin.mmengine",
        ),
        ("__init__.py", "find_spec('mmdet')\n", "the root of frskd_plugin must not name mmdet"),
    ],
)
def test_refused(check, name, source, culprit):
    assert check(name, source) == [culprit]


def test_a_call_with_a_literal_name_counts(check):
    source = "import importlib\nimportlib.import_module('mmseg.models')\n"
    assert check("timm/wrap.py", source) == ["frskd_plugin.timm must not import mmseg.models"]


def test_a_new_subpackage_needs_a_layer(check):
    assert "has no layer yet: give it a line in LAYERS" in check("novel/x.py", "")[0]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no Python files: give the folder of the package"):
        check_imports.check_package(tmp_path)


def test_the_command_fails_on_a_violation(tmp_path, monkeypatch, capsys):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "bad.py").write_text("import timm\n")
    monkeypatch.setattr(sys, "argv", ["check_imports.py", str(tmp_path)])
    assert check_imports.main() == 1
    assert "bad.py:1: frskd_plugin.core must not import timm" in capsys.readouterr().out
