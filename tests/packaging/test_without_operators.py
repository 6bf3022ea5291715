"""Without mmdetection, or without the compiled operators that it needs: the detector says so, all else works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CURE = "needs an mmcv with compiled operators, made for exactly the torch that is installed"
BUILD = (
    "import sys\n{before}\nimport frskd_plugin\nfrom mmengine.registry import MODELS\n"
    "for name in ('BiFPN', 'SelfTeacherNeck'):\n"
    "    print(type(MODELS.build(dict(type=name, in_channels=[8, 8], channels=8, variant='efficientdet'))).__name__)\n"
    "print(MODELS.build(dict(type='FRSKDLoss', soft_label='sigmoid')).soft_label_loss.soft_label)\n"
    "{build}"
)
DETECTOR = "MODELS.build(dict(type='FRSKDSingleStage', bbox_head=dict(type='RetinaHead'), self_teacher=dict()))"


@pytest.fixture
def bare_mmdet(tmp_path: Path) -> Path:
    """A folder with an mmdet that is made as the real one is: its registry imports the models, they the operators."""
    folder = tmp_path / "site"
    (folder / "mmdet" / "models").mkdir(parents=True)
    (folder / "mmdet" / "__init__.py").write_text("")
    (folder / "mmdet" / "models" / "__init__.py").write_text("import mmcv._ext\n")
    (folder / "mmdet" / "registry.py").write_text(
        "from mmengine.registry import MODELS as ROOT, Registry\n"
        "MODELS = Registry('model', parent=ROOT, locations=['mmdet.models'])\n"
    )
    return folder


def run(before: str, build: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Build small parts, then the detector, in a fresh interpreter."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    code = BUILD.format(before=before, build=build)
    done = subprocess.run([sys.executable, "-c", code], cwd=path.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[:3] == ["BiFPN", "SelfTeacherNeck", "sigmoid"], done.stderr
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.rstrip().splitlines()[-1]


@pytest.mark.parametrize(
    ("blocked", "reason"), [("mmdet", "mmdetection is not installed"), ("mmcv._ext", "make test-mmdet")]
)
def test_the_detector_says_what_is_missing(bare_mmdet: Path, blocked: str, reason: str) -> None:
    message = last_line(run(f"sys.modules[{blocked!r}] = None", DETECTOR, bare_mmdet))
    assert "FRSKDSingleStage of frskd_plugin cannot be built" in message
    assert CURE in message and reason in message


def test_without_operators_in_a_config_of_mmdet(bare_mmdet: Path) -> None:
    """There mmdet's own registry fails first: what the command lines wrap the build in says the same."""
    build = (
        "from mmengine.registry import init_default_scope\n"
        "from frskd_plugin.mmengine.config_tools import explained_build\n"
        f"init_default_scope('mmdet')\nwith explained_build('frskd_coco.py'):\n    {DETECTOR}"
    )
    message = last_line(run("sys.modules['mmcv._ext'] = None", build, bare_mmdet))
    assert message.startswith("ImportError: config frskd_coco.py: mmdetection needs an mmcv with compiled operators")
