"""What `import frskd_plugin` imports, seen from fresh interpreters. No times: which modules are loaded is the cost."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import frskd_plugin

ROOT = Path(__file__).resolve().parents[2]
needs_mmengine = pytest.mark.skipif(importlib.util.find_spec("mmengine") is None, reason="mmengine is not installed")
needs_mmseg = pytest.mark.skipif(importlib.util.find_spec("mmseg") is None, reason="mmseg is not installed")
HEAVY = {"timm", "mmcv", "mmseg", "mmdet", "torchvision"}


def run(code: str, *, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, with `path` in front of everything and outside the checkout."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    return subprocess.run([sys.executable, "-c", code], cwd=path.parent, env=env, capture_output=True, text=True)


def loaded(code: str, *blocked: str) -> set[str]:
    """Names of all modules that are loaded after the code ran where some packages are not installed."""
    blocks = "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    report = "print(json.dumps([n for n, m in sys.modules.items() if m is not None]))"
    done = run(f"import json, sys\n{blocks}{code}\n{report}")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_root_imports_neither_torch_nor_timm():
    modules = loaded("import frskd_plugin", "mmengine")
    ours = {name for name in modules if name.startswith("frskd_plugin")}
    assert ours == {"frskd_plugin", "frskd_plugin.version", "frskd_plugin._moved"}
    assert not modules & {"torch", "numpy", *HEAVY}


@pytest.mark.parametrize("blocked", [["mmengine", *HEAVY], ["timm"]])
def test_the_core_needs_torch_alone(blocked):
    modules = loaded("import frskd_plugin.core", *blocked)
    assert "torch" in modules and not modules & {"timm", *blocked}


@needs_mmengine
def test_registration_imports_no_heavy_module():
    modules = loaded("import frskd_plugin")
    assert "frskd_plugin.mmengine.registration" in modules
    assert not modules & {"frskd_plugin.timm", "frskd_plugin.mmseg", *HEAVY}


@needs_mmseg
def test_mmseg_models_wait_for_the_first_component():
    assert not any(name.startswith(("mmseg.models", "mmdet")) for name in loaded("import mmseg, frskd_plugin"))


@needs_mmengine
@pytest.mark.parametrize("first", ["frskd_plugin", "mmengine"])
def test_what_is_imported_first_or_twice_does_not_matter(first):
    code = (
        f"import {first}, frskd_plugin\nfrom mmengine.registry import HOOKS, MODELS\n"
        "from mmengine.utils import import_modules_from_strings\n"
        "import_modules_from_strings(['frskd_plugin'])\nnames = dict(MODELS.module_dict)\n"
        "import_modules_from_strings(['frskd_plugin', 'frskd_plugin.mmengine'])\nsame = names == MODELS.module_dict\n"
        "neck = MODELS.build(dict(type='SelfTeacherNeck', in_channels=[4, 8], width=1))\n"
        "print(type(neck).__name__, 'DistillWarmupHook' in HOOKS.module_dict, same)"
    )
    done = run(code)
    assert done.stdout.splitlines()[-1:] == ["SelfTeacherNeck True True"], done.stderr


@pytest.fixture
def broken_mmengine(tmp_path: Path) -> Path:
    """A folder with an mmengine that is installed and cannot be imported."""
    folder = tmp_path / "site"
    (folder / "mmengine").mkdir(parents=True)
    (folder / "mmengine" / "__init__.py").write_text("raise OSError('libbroken.so: undefined symbol')\n")
    return folder


def test_timm_names_come_with_their_first_use_also_beside_a_broken_mmengine(broken_mmengine):
    code = (
        "import sys, warnings\nwith warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n    import frskd_plugin, importlib\n"
        "    importlib.import_module('frskd_plugin')\n    assert 'timm' not in sys.modules\n"
        "    from frskd_plugin import TimmFeatureExtractor\n    import timm\n"
        "assert callable(timm.create_model) and 'mmseg' not in sys.modules\n"
        "(message,) = [str(w.message) for w in caught if 'frskd_plugin' in str(w.message)]\nprint(message)"
    )
    done = run(code, path=broken_mmengine)
    assert "mmengine is installed but cannot be imported" in done.stdout, done.stderr
    assert "OSError: libbroken.so: undefined symbol" in done.stdout


def test_a_broken_mmengine_shows_its_real_reason_in_the_adapter(broken_mmengine):
    done = run("import frskd_plugin.mmseg", path=broken_mmengine)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("OSError: libbroken.so: undefined symbol")


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'frskd_plugin' has no attribute 'no_such_name'"):
        frskd_plugin.no_such_name  # noqa: B018
