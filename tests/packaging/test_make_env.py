"""scripts/make_env.sh where it decides or refuses; nothing is installed here."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the script needs bash")


def make_env(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / "make_env.sh"), str(folder)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=env, cwd=folder.parent, capture_output=True, text=True)


def refused(done: subprocess.CompletedProcess[str], message: str) -> bool:
    return done.returncode == 1 and f"[env] ERROR: {message}" in done.stderr


def test_an_interpreter_that_is_not_there(tmp_path):
    done = make_env(tmp_path / "env", PYTHON="no-such-python")
    assert refused(done, "PYTHON=no-such-python is not a command. Name an interpreter of Python 3.10 or later.")
    assert not (tmp_path / "env").exists()


def test_an_interpreter_that_is_too_old(tmp_path):
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    assert refused(
        make_env(tmp_path / "env", PYTHON=str(old)), f"PYTHON={old} does not run or is older than Python 3.10."
    )


def test_too_little_disk(tmp_path):
    done = make_env(tmp_path / "env", NEEDED_GB="1000000000")
    assert refused(done, "the environment takes about 1000000000 GB")
    assert not (tmp_path / "env").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    assert refused(make_env(folder), f"{folder} has files that this script did not make")
    assert (folder / "chapter1.tex").read_text() == "years of work"


def test_an_environment_of_somebody_else_is_left_alone(tmp_path):
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "mmcv").mkdir()
    done = make_env(folder)
    assert refused(done, f"{folder} has files that this script did not make, and not the packages that are needed")
    assert "torch is not installed" in done.stderr
    assert (site / "mmcv").is_dir()


def ours(folder: Path, *, complete: str | None) -> Path:
    """A folder as the script leaves it when it is killed (complete=None) or when other files defined it."""
    venv.create(folder, with_pip=False)
    (folder / ".frskd_env").write_text("ours\n")
    (folder / "rest_of_a_killed_pip").write_text("")
    if complete is not None:
        (folder / ".frskd_complete").write_text(complete)
    return folder


@pytest.mark.parametrize(
    ("complete", "reason"),
    [(None, "is half-made"), ("123-456\n", "the files that define"), ("KEY", "torch is not installed")],
    ids=["half-made", "changed", "broken"],
)
def test_one_of_ours_that_is_not_whole_is_built_again(tmp_path, complete, reason):
    if complete == "KEY":
        files = ["setup.cfg", "setup.py", "pyproject.toml", "constraints.txt", "scripts/make_env.sh"]
        content = b"".join((ROOT / name).read_bytes() for name in files)
        complete = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout.decode()
        complete = complete.strip().replace(" ", "-")
    folder = ours(tmp_path / "env", complete=complete)
    checked = make_env(folder, CHECK_ONLY="1")
    assert checked.returncode == 1
    assert reason in checked.stderr
    assert (folder / "rest_of_a_killed_pip").exists()

    done = make_env(folder)  # without an index, pip stops at the first package
    assert refused(done, "pip could not install: torch torchvision timm. The reason stands above")
    assert not (folder / "rest_of_a_killed_pip").exists()
    assert (folder / ".frskd_env").exists()
    assert not (folder / ".frskd_complete").exists()
