"""Says whether the environment of the running interpreter is whole: versions, files and imports.

``python -I scripts/check_env.py constraints.txt`` exits with 0, or prints what is wrong and exits with 1.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from pathlib import Path

# distribution -> what is imported of it; mmcv.cnn and mmseg.registry also show whether torch and mmcv fit each other
REQUIRED = {
    "torch": "torch",
    "torchvision": "torchvision.ops",
    "timm": "timm.layers",
    "onedl-mmengine": "mmengine.runner",
    "onedl-mmcv": "mmcv.cnn",
    "onedl-mmsegmentation": "mmseg.registry",
    "tensorboard": "tensorboard",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "sphinx": "sphinx",
    "latex2mathml": "latex2mathml.converter",
    "pytest": "pytest",
    "pytest-xdist": "xdist",
    "pytest-timeout": "pytest_timeout",
    "import-linter": "importlinter",
    "mypy": "mypy",
    "ruff": "ruff",
    "setuptools": "setuptools.build_meta",
}


def pinned_versions(constraints: Path) -> dict[str, str]:
    """The ``name==version`` lines of a constraints file, by lower-case name."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pairs = (re.match(r"([\w.-]+)==([^\s;]+)", line) for line in lines)
    return {match[1].lower(): match[2] for match in pairs if match}


def missing_files(distribution: importlib.metadata.Distribution) -> list[str]:
    """Files of a distribution that are gone or have another size than at installation (byte code left aside)."""
    missing = []
    for file in distribution.files or []:
        if file.suffix == ".pyc":
            continue
        try:
            size = Path(str(file.locate())).stat().st_size
        except OSError:
            missing.append(str(file))
            continue
        if file.size is not None and size != file.size:
            missing.append(str(file))
    return missing


def problems(constraints: Path) -> list[str]:
    """Everything that is wrong with this environment, one sentence each."""
    pinned = pinned_versions(constraints)
    found = []
    for name in REQUIRED:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
            continue
        if name != "setuptools" and name in pinned and version != pinned[name]:
            found.append(f"{name} is {version}, tested is {pinned[name]}")
    if found:
        return found
    for distribution in importlib.metadata.distributions():
        if missing := missing_files(distribution):
            name = distribution.metadata["Name"]
            found.append(f"{name}: {len(missing)} installed files are missing or changed, the first is {missing[0]}")
    if found:
        return found
    for name, module in REQUIRED.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken installation may raise anything
            found.append(f"{name}: `import {module}` fails with {type(error).__name__}: {error}")
    return found


def main() -> int:
    """Print what is wrong; the exit status says whether anything is."""
    found = problems(Path(sys.argv[1]))
    for problem in found:
        print(f"[env] {sys.prefix}: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
