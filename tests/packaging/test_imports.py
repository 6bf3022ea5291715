"""What `import frskd_plugin` imports, where nothing else is. No times: which modules are loaded is the cost."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import frskd_plugin

ROOT = Path(__file__).resolve().parents[2]
needs_mmengine = pytest.mark.skipif(importlib.util.find_spec("mmengine") is None, reason="mmengine is not installed")
needs_mmseg = pytest.mark.skipif(importlib.util.find_spec("mmseg") is None, reason="mmseg is not installed")
HEAVY = {"timm", "mmcv", "mmseg", "mmdet", "torchvision"}


# An interpreter that has imported torch alone. Each line that it reads is run in a fork of it, of which it prints the
# exit status: torch takes most of the time of a question.
FORKS = """
import json, os, sys
import torch
for line in sys.stdin:
    code, paths, outputs = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, file in enumerate(outputs, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
        sys.path[:0] = paths
        exec(code, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LOADED = "\nimport json, sys; print(json.dumps([n for n, m in sys.modules.items() if m is not None]))"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run code with `path` in front of everything and outside the checkout."""
    outputs = [tmp_path_factory.mktemp("outside") / name for name in ("stdout", "stderr")]
    settings = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=outputs[0].parent)

    with subprocess.Popen([sys.executable, "-c", FORKS], **settings) as forks:

        def ask(code: str, *blocked: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
            blocks = "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
            for file in outputs:
                file.unlink(missing_ok=True)
            question = [f"import sys\n{blocks}{code}", [str(path), str(ROOT)], [str(file) for file in outputs]]
            forks.stdin.write(json.dumps(question) + "\n")
            forks.stdin.flush()
            status = int(forks.stdout.readline())
            return subprocess.CompletedProcess(code, status, *(file.read_text() for file in outputs))

        yield ask


def names(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Names of all modules that are loaded after code that ends with `LOADED`."""
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_root_imports_neither_torch_nor_timm():
    code = f"import sys; sys.modules['mmengine'] = None\nimport frskd_plugin{LOADED}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    modules = names(subprocess.run(command, cwd=ROOT.parent, env=env, capture_output=True, text=True))
    ours = {name for name in modules if name.startswith("frskd_plugin")}
    assert ours == {"frskd_plugin", "frskd_plugin.version", "frskd_plugin._moved"}
    assert not modules & {"torch", "numpy", *HEAVY}


@pytest.mark.parametrize("blocked", [["mmengine", *HEAVY], ["timm"]])
def test_the_core_needs_torch_alone(run, blocked):
    modules = names(run(f"import frskd_plugin.core{LOADED}", *blocked))
    assert "torch" in modules and not modules & {"timm", *blocked}


@needs_mmengine
def test_registration_imports_no_heavy_module(run):
    modules = names(run(f"import frskd_plugin{LOADED}"))
    assert "frskd_plugin.mmengine.registration" in modules
    assert not modules & {"frskd_plugin.timm", "frskd_plugin.mmseg", *HEAVY}


@needs_mmseg
def test_mmseg_models_wait_for_the_first_component(run):
    modules = names(run(f"import mmseg, frskd_plugin{LOADED}"))
    assert "mmseg" in modules and not any(name.startswith(("mmseg.models", "mmdet")) for name in modules)


@needs_mmengine
@pytest.mark.parametrize("first", ["frskd_plugin", "mmengine"])
def test_what_is_imported_first_or_twice_does_not_matter(run, first):
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


def test_timm_names_come_with_their_first_use_also_beside_a_broken_mmengine(run, broken_mmengine):
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


def test_a_broken_mmengine_shows_its_real_reason_in_the_adapter(run, broken_mmengine):
    done = run("import frskd_plugin.mmseg", path=broken_mmengine)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("OSError: libbroken.so: undefined symbol")


@needs_mmengine
def test_two_families_of_openmmlab_are_warned_of(run, tmp_path):
    for name in ("mmcv", "onedl_mmcv"):
        folder = tmp_path / f"{name}-9.9.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 9.9\n")
    done = run("import frskd_plugin; print(frskd_plugin.__version__)", path=tmp_path)
    assert done.stderr.count("mmcv 9.9 and onedl-mmcv 9.9 both provide `mmcv`") == 1
    assert done.stdout.strip() == frskd_plugin.__version__


DETECTOR = """
import sys
import frskd_plugin
from mmengine.registry import MODELS, init_default_scope
from frskd_plugin.mmengine.config_tools import explained_build

DETECTOR = dict(type="FRSKDSingleStage", bbox_head=dict(type="RetinaHead"), self_teacher=dict())

def attempt():
    try:
        MODELS.build(DETECTOR)
    except ImportError as error:
        print(error)

for name in ("BiFPN", "SelfTeacherNeck"):
    MODELS.build(dict(type=name, in_channels=[8, 8], channels=8, variant="efficientdet"))
sys.modules["mmdet"] = None
attempt()
del sys.modules["mmdet"]
sys.modules["mmcv._ext"] = None
attempt()
init_default_scope("mmdet")
with explained_build("frskd_coco.py"):
    MODELS.build(DETECTOR)
"""


@needs_mmseg
def test_the_detector_says_what_is_missing(run, tmp_path):
    """Beside an mmdet that is made as the real one is: its registry imports the models, and they the operators."""
    package = tmp_path / "mmdet"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "__init__.py").write_text("import mmcv._ext\n")
    (package / "registry.py").write_text(
        "from mmengine.registry import MODELS as ROOT, Registry\n"
        "MODELS = Registry('model', parent=ROOT, locations=['mmdet.models'])\n"
    )
    done = run(DETECTOR, path=tmp_path)
    cure = "needs an mmcv with compiled operators, made for exactly the torch that is installed"
    without_mmdet, without_operators = done.stdout.splitlines()[-2:]
    for message, reason in (without_mmdet, "mmdetection is not installed"), (without_operators, "make test-mmdet"):
        assert "FRSKDSingleStage of frskd_plugin cannot be built" in message
        assert cure in message and reason in message
    # in a config of mmdet its own registry fails first: what the command lines wrap the build in says the same
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: config frskd_coco.py: mmdetection {cure}")


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'frskd_plugin' has no attribute 'no_such_name'"):
        frskd_plugin.no_such_name  # noqa: B018
