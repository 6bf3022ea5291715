"""scripts/mmdet_env.sh where it refuses, and the look at what it kept; nothing is compiled or installed here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the script needs bash")


def mmdet_env(cache: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"XDG_CACHE_HOME": str(cache), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, **environment}
    command = ["bash", str(SCRIPTS / "mmdet_env.sh"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_needs_an_interpreter(tmp_path):
    done = mmdet_env(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: scripts/mmdet_env.sh PYTHON" in done.stderr


def test_an_interpreter_without_torch(tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    done = mmdet_env(tmp_path, str(bare))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"[mmdet] ERROR: {bare} has no torch or no onedl-mmcv" in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler (no-such-compiler) was found"),
        ({"NEEDED_GB": "1000000000"}, "compiling takes about 1000000000 GB"),
    ],
)
def test_what_compiling_needs(tmp_path, environment, message):
    if not any(metadata.distributions(name="onedl-mmcv")):
        pytest.skip("the script compiles the operators of onedl-mmcv, which is not installed")
    done = mmdet_env(tmp_path, sys.executable, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"[mmcv] ERROR: {message}" in done.stderr
    assert [path.name for path in (tmp_path / "frskd_plugin").iterdir() if path.is_dir()] == []  # no rest is left


def test_a_kept_folder_that_does_not_work_is_seen(tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("raise ImportError('undefined symbol')\n")
    command = [sys.executable, "-I", str(SCRIPTS / "check_mmdet.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.strip() == f"{tmp_path} does not work: ImportError: undefined symbol"
