"""Methods by name; a user's own joins with a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from frskd_plugin.methods.base import Method, StudentInfo
from frskd_plugin.methods.baseline import Baseline
from frskd_plugin.methods.frskd import FRSKD

_METHODS: dict[str, type[Method]] = {"baseline": Baseline, "frskd": FRSKD}


def method_names() -> list[str]:
    """The names that `make_method` knows.

    >>> {"baseline", "frskd"} <= set(method_names())
    True
    """
    return sorted(_METHODS)


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator that makes a subclass of `Method` known by ``name``.

    Raises:
        TypeError: it is no subclass of `Method`.
        ValueError: the name is taken by another class.
    """

    def register(cls: type[Method]) -> type[Method]:
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise TypeError(
                f"register_method({name!r}) expects a subclass of frskd_plugin.methods.Method, got {cls!r}."
            )
        if _METHODS.setdefault(name, cls) is not cls:
            raise ValueError(f"The method {name!r} is there already ({_METHODS[name].__name__}); choose another name.")
        return cls

    return register


def make_method(name: str, student: StudentInfo, **settings: Any) -> Method:
    """Build a method for a student.

    Raises:
        TypeError: a setting that the method does not have.
        ValueError: an unknown name, or a setting out of range.
    """
    if name not in _METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, method_names()))}, got {name!r}.")
    cls = _METHODS[name]
    known = [p for p in inspect.signature(cls).parameters if p != "student"]
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        has = f"its settings are: {', '.join(known)}" if known else "it has no settings"
        raise TypeError(f"The method {name!r} has no setting {', '.join(map(repr, unknown))}; {has}.")
    return cls(student, **settings)
