"""What the wheel contains, and that it works where it is unpacked."""

from __future__ import annotations

import email
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def can_build() -> bool:
    """Whether setuptools can write wheels by itself (70.1) or with the help of `wheel`."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= (70, 1) or importlib.util.find_spec("wheel") is not None


pytestmark = pytest.mark.skipif(not can_build(), reason="setuptools >= 70.1 is not installed")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what git would commit, with a stale build/ as a checkout in use has it."""
    copy = tmp_path_factory.mktemp("checkout") / "frskd"
    copy.mkdir()
    for entry in ROOT.iterdir():
        if entry.is_file():
            shutil.copy(entry, copy)
    for name in ("frskd_plugin", "configs", "tools", "tests", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    stale = copy / "build" / "lib" / "frskd_plugin" / "removed_long_ago.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    return copy


def build(checkout: Path, kind: str, folder: Path) -> Path:
    """Let setuptools make a 'wheel' or an 'sdist', as pip and build do."""
    code = f"from setuptools import build_meta; import sys; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, folder], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    return build(checkout, "wheel", tmp_path_factory.mktemp("wheel"))


def files_below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_has_the_package_its_configs_and_its_tools_and_nothing_else(wheel, checkout):
    expected = {f"frskd_plugin/{name}" for name in files_below(checkout / "frskd_plugin")}
    expected |= {f"frskd_plugin/.mim/configs/{name}" for name in files_below(checkout / "configs")}
    expected |= {f"frskd_plugin/.mim/tools/{name}" for name in files_below(checkout / "tools")}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected
    assert {"frskd_plugin/py.typed", "frskd_plugin/core/__init__.py"} <= expected


def test_metadata_and_that_each_extra_has_one_family(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = email.message_from_bytes(archive.read(name))
    namespace: dict[str, str] = {}
    exec((ROOT / "frskd_plugin" / "version.py").read_text(), namespace)
    assert (fields["Requires-Python"], fields["Version"]) == (">=3.10", namespace["__version__"])
    assert "Apache-2.0" in (fields["License-Expression"] or fields["License"])
    names: dict[str, set[str]] = {}
    for line in fields.get_all("Requires-Dist"):
        requirement, _, marker = line.partition(";")
        extra = marker.split("extra ==")[1].strip(" '\"") if "extra ==" in marker else ""
        names.setdefault(extra, set()).add(re.match(r"[\w.-]+", requirement)[0])
    assert names[""] == {"torch", "timm"}
    assert names["onedl"] == {"onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation", "tensorboard"}
    assert names["openmmlab"] == {"mmengine", "mmcv", "mmsegmentation", "ftfy", "regex", "tensorboard"}
    assert not {name for name in names["dev"] if name.startswith(("mm", "onedl"))}


def test_the_source_archive_has_what_the_wheel_is_made_of(checkout, tmp_path):
    with tarfile.open(build(checkout, "sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("frskd_plugin", "configs", "tools"):
        assert {f"{folder}/{name}" for name in files_below(checkout / folder)} <= names
    assert {"setup.cfg", "setup.py", "pyproject.toml", "Makefile", "noxfile.py"} <= names  # `make lint` reads them all
    assert not any(name.startswith("build/") for name in names)


def test_the_unpacked_wheel_runs(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import frskd_plugin; print(frskd_plugin.__file__); from frskd_plugin.commands import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    place, *listed = done.stdout.splitlines()
    assert Path(place) == tmp_path / "frskd_plugin" / "__init__.py" and any("reproduce" in line for line in listed)
