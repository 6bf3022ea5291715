"""Run the tests with other versions of torch, timm and OpenMMLab: ``nox -s newest oldest_timm originals mmdet``.

Each session has an environment of its own in .nox/ (about 6 GB, kept). Arguments behind ``--`` go to pytest.
"""

from __future__ import annotations

from pathlib import Path

import nox

ROOT = Path(__file__).parent
FORKS = ("onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation")
TOOLS = ("tensorboard", "pytest", "pytest-timeout", "pytest-xdist", "setuptools")
EXTRAS = ("jinja2", "matplotlib", "onnx", "onnxscript", "onnxruntime")

nox.options.sessions = ["newest", "oldest_timm", "originals"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, *requirements: str) -> None:
    """Install what the tests need in the versions of constraints.txt, where ``requirements`` name no other."""
    changed = {requirement.split("==")[0] for requirement in requirements if "==" in requirement}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text("\n".join(line for line in lines if line.split("==")[0] not in changed))
    # pip's isolated build has no torch, and so makes an mmcv without operators; its cache may hold one with them
    session.install("--no-cache-dir", "--no-binary", "onedl-mmcv", "-c", str(constraints), *requirements)


def run_tests(session: nox.Session) -> None:
    """Run pytest on this checkout; tests/conftest.py skips what a stack cannot pass, with the reason."""
    environment = {"PYTHONPATH": str(ROOT)}
    session.run("bash", "scripts/run_tests.sh", "python", *session.posargs, env=environment, external=True)


@nox.session
def main(session: nox.Session) -> None:
    """Run the versions of constraints.txt."""
    install(session, "torch", "torchvision", "timm", *FORKS, *TOOLS, *EXTRAS)
    run_tests(session)


@nox.session
def newest(session: nox.Session) -> None:
    """Run the newest torch with the forks."""
    install(session, "torch==2.15.0", "torchvision==0.29.2", "timm", *FORKS, *TOOLS, *EXTRAS)
    run_tests(session)


@nox.session
def oldest_timm(session: nox.Session) -> None:
    """Run the oldest timm that setup.cfg allows."""
    install(session, "torch", "torchvision", "timm==1.0.20", *FORKS, *TOOLS, *EXTRAS)
    run_tests(session)


@nox.session
def originals(session: nox.Session) -> None:
    """Run the original OpenMMLab packages, with mmcv's operators compiled (minutes, once)."""
    others = ("torch", "torchvision", "timm", "mmengine==0.10.7", "mmsegmentation==1.2.2", "ftfy", "regex")
    install(session, *others, *TOOLS, *EXTRAS)
    python = str(Path(session.bin) / "python")
    wheel = session.run("scripts/mmcv_operators.sh", python, "mmcv==2.1.0", external=True, silent=True)
    session.install("--no-deps", str(wheel).strip().splitlines()[-1])
    run_tests(session)


@nox.session
def mmdet(session: nox.Session) -> None:
    """Run the tests that need mmdetection and mmcv's operators, in the versions of constraints.txt."""
    install(session, "torch", "torchvision", "timm", *FORKS, *TOOLS, *EXTRAS)
    python = str(Path(session.bin) / "python")
    session.run("bash", "scripts/test_mmdet.sh", python, *session.posargs, external=True)
