"""Without mmdetection, or without the compiled operators that it needs: the detector says so, all else works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CURE = "needs an mmcv with compiled operators, made for exactly the torch that is installed"
CODE = """
import sys
import frskd_plugin
from mmengine.registry import MODELS, init_default_scope
from frskd_plugin.mmengine.config_tools import explained_build

DETECTOR = dict(type="FRSKDSingleStage", bbox_head=dict(type="RetinaHead"), self_teacher=dict())

def attempt():
    try:
        MODELS.build(DETECTOR)
    except ImportError as error:
        return str(error)

for name in ("BiFPN", "SelfTeacherNeck"):
    MODELS.build(dict(type=name, in_channels=[8, 8], channels=8, variant="efficientdet"))
sys.modules["mmdet"] = None
print(attempt())
del sys.modules["mmdet"]
sys.modules["mmcv._ext"] = None
print(attempt())
init_default_scope("mmdet")
with explained_build("frskd_coco.py"):
    MODELS.build(DETECTOR)
"""


def test_the_detector_says_what_is_missing(tmp_path: Path) -> None:
    """With an mmdet that is made as the real one is: its registry imports the models, and they the operators."""
    package = tmp_path / "site" / "mmdet"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "__init__.py").write_text("import mmcv._ext\n")
    (package / "registry.py").write_text(
        "from mmengine.registry import MODELS as ROOT, Registry\n"
        "MODELS = Registry('model', parent=ROOT, locations=['mmdet.models'])\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, env=env, capture_output=True, text=True)
    without_mmdet, without_operators = done.stdout.splitlines()[-2:]
    for message, reason in (without_mmdet, "mmdetection is not installed"), (without_operators, "make test-mmdet"):
        assert "FRSKDSingleStage of frskd_plugin cannot be built" in message
        assert CURE in message and reason in message
    # in a config of mmdet its own registry fails first: what the command lines wrap the build in says the same
    last_line = done.stderr.rstrip().splitlines()[-1]
    assert last_line.startswith(f"ImportError: config frskd_coco.py: mmdetection {CURE}")
