"""Makes the environment of a row outside the checkout, or finds the one that was made before."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.matrix.rows import Row

ROOT = Path(__file__).resolve().parents[2]
COMPLETE = ".frskd_complete"  # written last
NEEDED_GB = 8  # torch with CUDA and the rest
# these would send pip's work elsewhere, or show the row packages of another place
NOT_PASSED_ON = ("PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_NO_BUILD_ISOLATION", "PYTHONPATH", "PYTHONHOME")


class BuildError(RuntimeError):
    """An environment that could not be made."""


def cache_folder() -> Path:
    """Where the environments are kept; XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frskd_plugin"


def prepare(row: Row, cache: Path, log: Path) -> Path:
    """The interpreter of the row's environment, which is made now if it is not there.

    Args:
        row: a row of the table; for "main" it is the running interpreter.
        cache: folder that holds the environments.
        log: file that the output of pip and of the compiler is appended to.

    Raises:
        BuildError: the disk is full, or pip or the compiler failed; the log says why.
    """
    if row.pins is None:
        return Path(sys.executable)
    folder = cache / f"matrix-{row.name}-{environment_key(row)}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not (folder / COMPLETE).is_file():
            if folder.exists():  # a build that was stopped
                shutil.rmtree(folder)
            build(row, folder, log)
            (folder / COMPLETE).touch()
    return interpreter(folder)


def environment_key(row: Row) -> str:
    """Hash of all that defines the row's environment; a layer's main environment is part of it."""
    assert row.pins is not None
    parts = [
        sys.version,
        row.pins.read_text(),
        Path(__file__).read_text(),
        repr((row.layered, row.hides, row.compiles)),
    ]
    if row.layered:
        found = importlib.metadata.distributions(path=[str(main_packages())])
        parts += [str(main_packages()), *sorted(f"{item.metadata['Name']} {item.version}" for item in found)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def build(row: Row, folder: Path, log: Path) -> None:
    """Make the environment of a row in a folder that does not exist yet."""
    assert row.pins is not None
    python = str(interpreter(folder))
    if row.layered:
        venv.create(folder, with_pip=False, symlinks=True)
        link_packages(main_packages(), packages(folder), row.hides)
        install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(packages(folder))]
    else:
        free_gb = shutil.disk_usage(folder.parent).free / 1024**3
        if free_gb < NEEDED_GB:
            raise BuildError(
                f"{folder.parent} has {free_gb:.0f} GB free, {row.name} needs {NEEDED_GB}: set XDG_CACHE_HOME"
            )
        venv.create(folder, with_pip=True, symlinks=True)
        install = [python, "-m", "pip", "install"]
    # pip's cache does not tell an mmcv with compiled operators from one without
    install += ["--no-cache-dir", "--disable-pip-version-check"]
    run_logged([*install, "-r", str(row.pins)], log)
    if row.compiles:
        wheel = run_logged([str(ROOT / "scripts" / "mmcv_operators.sh"), python, row.compiles], log).strip()
        run_logged([*install, wheel], log)


def link_packages(source: Path, target: Path, hidden: Collection[str]) -> None:
    """Link all that is installed in one site-packages folder into another, but for some distributions.

    pip does not follow such links when it installs with ``--target``, so the source is safe from it.

    Args:
        source: folder that is read.
        target: folder that gets the links.
        hidden: names of the distributions that are left out, with all the top-level files they own.

    Raises:
        BuildError: a hidden distribution is not installed there; the layer would not replace what it means to.
    """
    installed = {normal(item.metadata["Name"]): item for item in importlib.metadata.distributions(path=[str(source)])}
    dropped = set()
    for name in hidden:
        if normal(name) not in installed:
            raise BuildError(
                f"{name} is not installed in {source}: run `make env`, and the matrix with that environment"
            )
        dropped |= {Path(file).parts[0] for file in installed[normal(name)].files or []}
    for entry in source.iterdir():
        if entry.name not in dropped and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)


def normal(name: str) -> str:
    """A distribution's name in the one form in which names are compared.

    Example:
        >>> normal("Onedl_MMCV")
        'onedl-mmcv'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def main_packages() -> Path:
    """The site-packages folder of the running interpreter."""
    return Path(sysconfig.get_path("purelib"))


def packages(folder: Path) -> Path:
    """The site-packages folder of an environment of the same Python."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))


def interpreter(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def run_logged(command: list[str], log: Path) -> str:
    """Run a command and append its messages to the log; what it prints to stdout is returned too.

    Raises:
        BuildError: its exit status is not 0.
    """
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment, check=False)
        file.write(done.stdout)
    if done.returncode:
        raise BuildError(f"`{' '.join(command)}` ended with status {done.returncode}, see {log}")
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock, and hold it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
