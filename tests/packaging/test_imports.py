"""What `import frskd_plugin` imports, seen from fresh interpreters. No times: which modules are loaded is the cost."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_mmengine = pytest.mark.skipif(importlib.util.find_spec("mmengine") is None, reason="mmengine is not installed")
needs_mmseg = pytest.mark.skipif(importlib.util.find_spec("mmseg") is None, reason="mmseg is not installed")


def run(code: str, *, path: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, with `path` in front of everything and outside the checkout."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)]), **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=path.parent, env=env, capture_output=True, text=True)


def loaded(code: str) -> set[str]:
    """Names of all modules that are loaded after the code ran."""
    done = run(f"{code}\nimport json, sys\nprint(json.dumps([n for n, m in sys.modules.items() if m is not None]))")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def block(*names: str) -> str:
    """Code that makes the import of some packages fail, as where they are not installed."""
    return "import sys\n" + "\n".join(f"sys.modules[{name!r}] = None" for name in names) + "\n"


def test_the_root_imports_neither_torch_nor_timm():
    modules = loaded(block("mmengine") + "import frskd_plugin")
    ours = {name for name in modules if name.startswith("frskd_plugin")}
    assert ours == {"frskd_plugin", "frskd_plugin.version", "frskd_plugin._moved"}
    assert not modules & {"torch", "timm", "torchvision", "numpy", "mmcv", "mmseg", "mmdet"}


def test_the_core_needs_torch_alone():
    modules = loaded(block("timm", "mmengine", "mmcv", "mmseg", "mmdet", "torchvision") + "import frskd_plugin.core")
    assert "torch" in modules
    assert not modules & {"timm", "mmengine", "mmcv", "mmseg", "mmdet", "torchvision"}


def test_the_core_works_without_timm_beside_mmengine():
    modules = loaded(block("timm") + "import frskd_plugin.core")
    assert "timm" not in modules


def test_timm_names_come_with_their_first_use():
    code = block("mmengine") + "import frskd_plugin\nfrom frskd_plugin import TimmFeatureExtractor"
    modules = loaded(code)
    assert {"timm", "frskd_plugin.timm"} <= modules
    assert not modules & {"mmengine", "mmseg"}


def test_the_subpackage_does_not_shadow_timm():
    code = block("mmengine") + "import frskd_plugin, frskd_plugin.timm, timm\nassert callable(timm.create_model)"
    assert run(code).returncode == 0


@needs_mmengine
def test_registration_imports_no_heavy_module():
    modules = loaded("import frskd_plugin")
    assert "frskd_plugin.mmengine.registration" in modules
    assert not modules & {"timm", "mmcv", "mmseg", "mmseg.models", "mmdet", "frskd_plugin.timm", "frskd_plugin.mmseg"}


@needs_mmseg
def test_mmseg_models_wait_for_the_first_component():
    assert not any(name.startswith(("mmseg.models", "mmdet")) for name in loaded("import mmseg, frskd_plugin"))


@needs_mmengine
@pytest.mark.parametrize(
    "imports", ["import frskd_plugin\nimport mmengine", "import mmengine\nimport frskd_plugin", "import frskd_plugin"]
)
def test_what_is_imported_first_does_not_matter(imports):
    code = (
        imports
        + "\nfrom mmengine.registry import HOOKS, MODELS"
        + "\nneck = MODELS.build(dict(type='SelfTeacherNeck', in_channels=[4, 8], width=1))"
        + "\nprint(type(neck).__name__, 'DistillWarmupHook' in HOOKS.module_dict)"
    )
    done = run(code)
    assert done.stdout.splitlines()[-1:] == ["SelfTeacherNeck True"], done.stderr


@needs_mmengine
def test_custom_imports_twice_change_nothing():
    code = (
        "from mmengine.registry import MODELS\nfrom mmengine.utils import import_modules_from_strings\n"
        "import_modules_from_strings(['frskd_plugin'])\nfirst = dict(MODELS.module_dict)\n"
        "import_modules_from_strings(['frskd_plugin', 'frskd_plugin.mmengine'])\n"
        "print(first == MODELS.module_dict and 'FRSKDEncoderDecoder' in first)"
    )
    done = run(code)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr


@pytest.fixture
def broken_mmengine(tmp_path: Path) -> Path:
    """A folder with an mmengine that is installed and cannot be imported."""
    folder = tmp_path / "site"
    (folder / "mmengine").mkdir(parents=True)
    (folder / "mmengine" / "__init__.py").write_text("raise OSError('libbroken.so: undefined symbol')\n")
    return folder


def test_a_broken_mmengine_is_reported_once(broken_mmengine):
    code = (
        "import warnings\nwith warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n    import frskd_plugin\n    import importlib\n"
        "    importlib.import_module('frskd_plugin')\n"
        "    from frskd_plugin import TimmFeatureExtractor\n"
        "print(len([w for w in caught if 'frskd_plugin' in str(w.message)]))\n"
        "print([str(w.message) for w in caught if 'frskd_plugin' in str(w.message)][0])\n"
        "print(TimmFeatureExtractor.__name__)"
    )
    done = run(code, path=broken_mmengine)
    assert done.returncode == 0, done.stderr
    count, message, name = done.stdout.splitlines()[-3:]
    assert count == "1"
    assert "mmengine is installed but cannot be imported" in message
    assert "OSError: libbroken.so: undefined symbol" in message
    assert name == "TimmFeatureExtractor"


@pytest.mark.parametrize("adapter", ["frskd_plugin.mmengine", "frskd_plugin.mmseg"])
def test_a_broken_mmengine_shows_its_real_reason_in_the_adapter(broken_mmengine, adapter):
    done = run(f"import {adapter}", path=broken_mmengine)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("OSError: libbroken.so: undefined symbol")


def test_an_unknown_name_is_refused():
    done = run(block("mmengine") + "import frskd_plugin\nfrskd_plugin.no_such_name")
    assert "AttributeError: module 'frskd_plugin' has no attribute 'no_such_name'" in done.stderr
