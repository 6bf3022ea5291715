"""Read configs that a run has stored, in its checkpoints and its work folder, without executing them.

A config file is Python, and so is its text in a checkpoint, of which only data is taken. Data may still lead somewhere:
a registry of mmengine that does not know a ``type`` imports and calls whatever has that name (``subprocess.Popen``),
and ``custom_imports`` imports. Both need the user's word.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import math
import sys
from collections.abc import Iterator
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmengine.utils import import_modules_from_strings

from frskd_plugin.core.checkpoint_file import BrokenCheckpointError
from frskd_plugin.mmengine.config_tools import dicts

ALLOW_IMPORTS = "--allow-imports"
_MAX_PARTS = 10**6  # of a config with all its names written out; ours have a few thousand
_SCOPES = {*MODULE2PACKAGE, "mmengine", "mmcv"}  # whose registries may be imported


def add_allow_imports(parser: argparse.ArgumentParser) -> None:
    """Add the option by which the user trusts a config that came with a file."""
    parser.add_argument(
        ALLOW_IMPORTS,
        action="store_true",
        help="trust the config in the checkpoint: import the modules that it names (custom_imports, types with a path)",
    )


def parse_config(text: str, name: str) -> dict[str, Any]:
    """Return the settings of a config's text as `Config.pretty_text` writes it, without executing it.

    Args:
        text: assignments of literals, lists, tuples and calls of ``dict``; anything else is a ValueError.
        name: what to call the text in errors.
    """
    names: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "float": float, "int": int, "str": str, "bool": bool}
    settings, sizes, parts = {}, dict[str, int](), 0
    try:
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=key)], value=value):
                    # lists that hold a list twice, which holds a list twice, ..., are small until they are walked
                    sizes[key] = sum(sizes.get(getattr(part, "id", ""), 1) for part in ast.walk(value))
                    parts += sizes[key]
                    if parts > _MAX_PARTS:
                        raise ValueError(f"{key} written out has more than {_MAX_PARTS} parts")
                    settings[key] = names[key] = _data(value, names)
                case ast.Expr(value=ast.Constant()):  # a docstring
                    pass
                case _:
                    raise _NotDataError(statement)
    except _NotDataError as error:
        node = error.args[0]
        code = (ast.get_source_segment(text, node) or "")[:80]  # not `unparse`, whose depth has a limit
        raise ValueError(
            f"{name} holds {code!r} in line {node.lineno}, which is code and was not run; expected data alone "
            f"(numbers, text, lists, dict(...)), as tools/train.py stores it"
        ) from error
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} cannot be read as a config ({type(error).__name__}: {error})") from error
    return settings


class _NotDataError(Exception):
    """Part of a config's text that is no data, as it stands there."""


def _data(node: Any, names: dict[str, Any]) -> Any:
    """Return the value of a literal, a known name or a call of ``dict``; raise _NotDataError with anything else."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() | ast.Name() as operand):
            value = _data(operand, names)
            if isinstance(value, int | float):
                return -value
        case ast.List(elts=items):
            return [_data(item, names) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_data(item, names) for item in items)
        case ast.Set(elts=items):
            return {_data(item, names) for item in items}
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_data(key, names): _data(value, names) for key, value in zip(keys, values, strict=True)}
        case ast.Call(func=ast.Name(id="dict"), args=[] | [ast.Dict()], keywords=words) if all(w.arg for w in words):
            content = _data(node.args[0], names) if node.args else {}
            return {**content, **{word.arg: _data(word.value, names) for word in words}}
    raise _NotDataError(node)


def stored_text(checkpoint: Any, name: str) -> str | None:
    """Return the text of the config in a checkpoint; None without one."""
    meta = (checkpoint.get("meta") if isinstance(checkpoint, dict) else None) or {}
    if not isinstance(meta, dict) or not isinstance(meta.get("cfg", ""), str):
        raise BrokenCheckpointError(f"{name}: its 'meta' is not that of a checkpoint of mmengine: {str(meta)[:80]}")
    return meta.get("cfg")


def stored_config(checkpoint: Any, name: str, allow_imports: bool = False) -> Config:
    """Return the config that a checkpoint was trained with, fit to be built.

    Args:
        checkpoint: content of the file.
        name: of the file, for errors.
        allow_imports: import what its ``custom_imports`` name, and let any ``type`` be imported by its path.

    Raises:
        ValueError: there is none, it is no data, or it needs imports that were not allowed.
    """
    text = stored_text(checkpoint, name)
    if text is None:
        raise ValueError(
            f"{name} does not hold the config it was trained with (meta['cfg']); expected a checkpoint written by "
            f"tools/train.py"
        )
    name = f"the config in {name} (meta['cfg'])"
    settings = parse_config(text, name)
    if not isinstance(settings.get("model"), dict):
        raise ValueError(f"{name} has no model=dict(...)")
    if allow_imports:
        imports = settings.get("custom_imports") or {}
        import_modules_from_strings(imports.get("imports"), imports.get("allow_failed_imports", False))
        return Config(settings)
    foreign = list(_foreign(settings))
    if foreign:
        raise ValueError(
            f"{name} would import or fetch {', '.join(foreign[:3])}{', ...' if foreign[3:] else ''}: "
            f"give {ALLOW_IMPORTS} if you trust the file"
        )
    return Config(settings)


def _foreign(settings: dict[str, Any]) -> Iterator[str]:
    """Yield the names that building a config would import or fetch, but for those of known packages."""
    parts = [part for part, _ in dicts(settings)]
    imports = settings.get("custom_imports") or {}
    imports = imports.get("imports") if isinstance(imports, dict) else imports
    for module in imports if isinstance(imports, (list, tuple)) else [imports] if imports else []:
        known = {"frskd_plugin", *_SCOPES}
        if str(module).split(".")[0] not in known and module not in sys.modules:  # what is imported already is no news
            yield str(module)
    for scope in (settings.get("default_scope"), *(part.get("_scope_") for part in parts)):
        if scope is not None and scope not in _SCOPES:
            yield str(scope)
    types = {part["type"] for part in parts if isinstance(part.get("type"), str)}
    yield from sorted(kind for kind in types - _registered(types) if _is_importable(kind))
    for name in (part.get("model_name") for part in parts):
        if isinstance(name, str) and ":" in name:  # timm fetches 'hf-hub:NAME', and reads a folder for 'local-dir:PATH'
            yield name


def _registered(kinds: set[str]) -> set[str]:
    """Return those that some registry knows, and so does not import by their path."""
    for package in {kind.split(".")[0] for kind in kinds if kind.count(".") == 1} & _SCOPES | {"mmseg"}:
        if importlib.util.find_spec(package) is not None:
            importlib.import_module(f"{package}.registry")
    known: set[str] = set()
    for root in vars(registry).values():
        if isinstance(root, Registry):
            known |= _names(root)
    return {kind for kind in kinds if kind in known}


def _names(node: Registry) -> set[str]:
    node.import_from_location()
    names = set(node.module_dict)
    names |= {f"{node.scope}.{key}" for key in names}
    return names.union(*map(_names, node.children.values()))


def _is_importable(kind: str) -> bool:
    try:
        return importlib.util.find_spec(kind.split(".")[0]) is not None
    except (ImportError, ValueError):
        return False
