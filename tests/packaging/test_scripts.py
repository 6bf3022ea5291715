"""The scripts that make environments: what they refuse, and what they never remove. Nothing is installed here."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scripts need bash")


def run(script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", SCRIPTS / script, *arguments], env=env, capture_output=True, text=True)


def make_env(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("make_env.sh", folder, **{"NEEDED_GB": "0", **environment})


def executable(path: Path, line: str) -> Path:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def test_an_environment_needs_an_interpreter_and_disk(tmp_path):
    broken = executable(tmp_path / "broken_python", "exit 1")
    for environment, message in (
        ({"PYTHON": "no-such-python"}, "PYTHON=no-such-python is not a command. Name an interpreter of Python 3.10"),
        ({"PYTHON": str(broken)}, f"PYTHON={broken} does not run or is older than Python 3.10."),
        ({"NEEDED_GB": "1000000000"}, "the environment takes about 1000000000 GB"),
    ):
        done = make_env(tmp_path / "env", **environment)
        assert done.returncode == 1 and f"[env] ERROR: {message}" in done.stderr
        assert not (tmp_path / "env").exists()


@pytest.mark.parametrize("is_venv", [False, True])
def test_what_somebody_else_made_is_left_alone(tmp_path, is_venv):
    folder = tmp_path / "theirs"
    file = folder / "chapter1.tex"
    if is_venv:
        venv.create(folder, with_pip=False)
        file = next(folder.glob("lib/python*/site-packages")) / "mmcv.py"
    folder.mkdir(exist_ok=True)
    file.write_text("years of work")
    done = make_env(folder)
    assert done.returncode == 1 and f"[env] ERROR: {folder} has files that this script did not make" in done.stderr
    assert file.read_text() == "years of work"


def test_one_of_ours_that_is_not_whole_is_built_again(tmp_path):
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    executable(folder / "bin" / "python", "exit 0")
    rest, complete = folder / "rest_of_a_killed_pip", folder / ".frskd_complete"
    rest.touch()
    (folder / ".frskd_env").touch()
    for reason in ("is half-made", "the files that define"):
        checked = make_env(folder, CHECK_ONLY="1")
        assert checked.returncode == 1 and reason in checked.stderr
        assert rest.exists()
        complete.write_text("123-456\n")  # the key of other files

    no_venv = executable(tmp_path / "no_venv", '[ "$1" != -m ]')
    done = make_env(folder, PYTHON=str(no_venv))
    assert done.returncode == 1 and f"[env] ERROR: {no_venv} -m venv failed" in done.stderr
    assert [path.name for path in folder.iterdir()] == [".frskd_env"]


def test_mmdetection_and_its_operators_say_what_they_need(tmp_path):
    broken, operators = executable(tmp_path / "broken_python", "exit 1"), [sys.executable, "onedl-mmcv==0"]
    for script, arguments, status, message in (
        ("mmdet_env.sh", [], 2, "usage: scripts/mmdet_env.sh PYTHON"),
        ("mmdet_env.sh", [broken], 1, f"[mmdet] ERROR: {broken} has no torch or no onedl-mmcv"),
        ("mmcv_operators.sh", operators, 1, "[mmcv] ERROR: no C++ compiler (no-such-compiler) was found"),
    ):
        done = run(script, *arguments, XDG_CACHE_HOME=str(tmp_path), CXX="no-such-compiler")
        assert (done.returncode, done.stdout) == (status, "") and message in done.stderr
    assert not [path for path in (tmp_path / "frskd_plugin").iterdir() if path.is_dir()]  # of a compilation
