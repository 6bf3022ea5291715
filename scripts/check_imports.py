"""Checks that imports point one way: core <- methods <- timm <- mmengine <- mmseg, mmdet <- tools.

Reads the sources with `ast` and imports nothing. Imports inside functions count too, and so do
``importlib.import_module("name")`` calls with a literal name.

    python scripts/check_imports.py [PACKAGE_FOLDER]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "frskd_plugin"
OPENMMLAB = frozenset({"mmengine", "mmcv", "mmseg", "mmdet", "mmpretrain"})


@dataclass(frozen=True)
class Layer:
    """What the modules of one subpackage may import.

    Args:
        inside: subpackages of ours that it may import beside itself; ``version`` is free for all.
        allowed: the only third-party packages, or None for any but the forbidden ones.
        forbidden: third-party packages that it must not import.
    """

    inside: frozenset[str]
    allowed: frozenset[str] | None = None
    forbidden: frozenset[str] = frozenset()


LAYERS = {
    # `frskd_plugin/*.py`: hands out names lazily and imports nothing heavy, neither ours nor others'
    "": Layer(inside=frozenset({"version", "_moved", "commands"}), allowed=frozenset()),
    "core": Layer(inside=frozenset(), allowed=frozenset({"torch"})),
    "methods": Layer(inside=frozenset({"core"}), allowed=frozenset({"torch"})),
    "data": Layer(inside=frozenset({"core"}), allowed=frozenset({"torch", "torchvision", "numpy", "PIL", "scipy"})),
    "timm": Layer(inside=frozenset({"core", "methods", "data"}), forbidden=OPENMMLAB),
    "mmengine": Layer(
        inside=frozenset({"core", "methods", "data", "timm"}), forbidden=frozenset({"mmcv", "mmseg", "mmdet"})
    ),
    "mmseg": Layer(inside=frozenset({"core", "methods", "data", "timm", "mmengine"}), forbidden=frozenset({"mmdet"})),
    "mmdet": Layer(inside=frozenset({"core", "methods", "data", "timm", "mmengine"}), forbidden=frozenset({"mmseg"})),
    # looks into models of any of them; only "coverage", which examines many, imports it
    "doctor": Layer(
        inside=frozenset({"", "core", "methods", "data", "timm", "mmengine", "mmseg", "mmdet", "benchmark"})
    ),
    # measures all of them, so it may see all of them, and the root ("") that registers them; nothing imports it
    "benchmark": Layer(inside=frozenset({"", "core", "methods", "data", "timm", "mmengine", "mmseg", "mmdet"})),
    # trains and measures all of them, and counts the self-teacher's layers; nothing imports it
    "reproduce": Layer(
        inside=frozenset({"", "core", "methods", "data", "timm", "mmengine", "mmseg", "mmdet", "benchmark"})
    ),
    # tries models of any of them; nothing imports it
    "coverage": Layer(
        inside=frozenset({"", "core", "methods", "data", "timm", "mmengine", "mmseg", "mmdet", "doctor"})
    ),
    # writes students of any of them as files for other runtimes; nothing imports it
    "deploy": Layer(
        inside=frozenset({"", "core", "methods", "data", "timm", "mmengine", "mmseg", "mmdet", "doctor", "benchmark"})
    ),
    # every command line: may see all of the package; nothing imports it but `__main__`
    "commands": Layer(
        inside=frozenset({"", "core", "methods", "data", "timm", "mmengine", "mmseg", "mmdet"})
        | {"doctor", "benchmark", "deploy", "report", "reproduce"}
    ),
    # reads what a run has logged and kept; nothing but tools imports it
    "report": Layer(inside=frozenset({"core", "methods", "data", "timm", "mmengine"})),
}
# the root starts the registration where mmengine is installed, by a call and never by an import statement
ROOT_MAY_CALL = {f"{PACKAGE}.mmengine"}
NEVER_NAMED_IN_ROOT = "mmdet"


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str, bool]]:
    """Yields (line, absolute module name, whether by a call) for each import in the source of ``module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, False
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            if base == PACKAGE:  # `from frskd_plugin import core` imports the module frskd_plugin.core
                for alias in node.names:
                    yield node.lineno, f"{PACKAGE}.{alias.name}", False
            else:
                yield node.lineno, base, False
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, True


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields (line, text) for the string constants of a source, docstrings left aside."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def check_module(path: Path, package_folder: Path) -> list[str]:
    """The violations in one module, as ``file:line: text``."""
    relative = path.relative_to(package_folder)
    layer_name = relative.parts[0] if len(relative.parts) > 1 else ""
    if layer_name not in LAYERS:
        return [
            f"{path}:1: {PACKAGE}.{layer_name} has no layer yet: give it a line in LAYERS of scripts/check_imports.py"
        ]
    layer = LAYERS[layer_name]
    module = ".".join([PACKAGE, *relative.with_suffix("").parts]).removesuffix(".__init__")
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    title = f"{PACKAGE}.{layer_name}" if layer_name else f"the root of {PACKAGE}"
    found = []
    for line, name, by_call in imported_names(tree, module, path.name == "__init__.py"):
        top, _, rest = name.partition(".")
        if top == PACKAGE:
            target = rest.partition(".")[0]
            allowed = target in layer.inside | {layer_name, "version"}
            allowed = allowed or (not layer_name and by_call and name in ROOT_MAY_CALL)
        elif layer.allowed is None:
            allowed = top not in layer.forbidden
        else:
            allowed = top in layer.allowed or top in sys.stdlib_module_names
        if not allowed:
            found.append(f"{path}:{line}: {title} must not import {name}")
    if not layer_name:
        for line, text in literals(tree):
            if NEVER_NAMED_IN_ROOT in text:
                found.append(f"{path}:{line}: {title} must not name {NEVER_NAMED_IN_ROOT}")
    return found


def check_package(package_folder: Path) -> list[str]:
    """The violations in all modules of the package."""
    paths = sorted(
        path for path in package_folder.rglob("*.py") if not path.relative_to(package_folder).parts[0].startswith(".")
    )
    if not paths:
        raise FileNotFoundError(f"{package_folder} holds no Python files: give the folder of the package {PACKAGE}")
    return [violation for path in paths for violation in check_module(path, package_folder)]


def main() -> int:
    """Print the violations; the exit status says whether there are any."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / PACKAGE
    found = check_package(folder)
    for violation in found:
        print(violation)
    print(f"directions of imports: {len(found)} violations in {folder.name}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
