"""Methods by name; a user's own joins with a decorator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from frskd_plugin.methods.base import Method, StudentInfo
from frskd_plugin.methods.baseline import Baseline, LabelSmoothing
from frskd_plugin.methods.byot import BYOT
from frskd_plugin.methods.cs_kd import CSKD
from frskd_plugin.methods.ddgsd import DDGSD
from frskd_plugin.methods.dlb import DLB
from frskd_plugin.methods.frskd import FRSKD
from frskd_plugin.methods.frskd_sla import FRSKDSLA
from frskd_plugin.methods.kd import KD
from frskd_plugin.methods.one import ONE
from frskd_plugin.methods.ps_kd import PSKD
from frskd_plugin.methods.sad import SAD
from frskd_plugin.methods.sla_sd import SLASD

_METHODS: dict[str, type[Method]] = {
    "baseline": Baseline,
    "label_smoothing": LabelSmoothing,
    "one": ONE,
    "ddgsd": DDGSD,
    "byot": BYOT,
    "sad": SAD,
    "cs_kd": CSKD,
    "sla_sd": SLASD,
    "frskd": FRSKD,
    "frskd_sla": FRSKDSLA,
    "kd": KD,
    "ps_kd": PSKD,
    "dlb": DLB,
}


# arguments of wrap, and the key by which a config names its method
_TAKEN_SETTINGS = ("model", "method", "out_indices", "criterion", "input_size", "name")


def method_names() -> list[str]:
    """List the names that `make_method` knows."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """Return the class of a name; its ``needs`` say what it asks of the data.

    Raises:
        ValueError: an unknown name.
    """
    if name not in _METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, method_names()))}, got {name!r}.")
    return _METHODS[name]


def register_method(name: str, force: bool = False) -> Callable[[type[Method]], type[Method]]:
    """Class decorator that makes a subclass of `Method` known by ``name``.

    Args:
        name: of the method.
        force: replace a class that has the name already, as when a cell of a notebook is run again.

    Raises:
        TypeError: the name is no text, or what it decorates is no subclass of `Method`, or does not override
            ``forward``.
        ValueError: the name is taken by another class, or a setting has the name of an argument of `wrap`.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"register_method expects a name, as in @register_method('mine'), got {name!r}.")

    def register(cls: type[Method]) -> type[Method]:
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise TypeError(
                f"register_method({name!r}) expects a subclass of frskd_plugin.methods.Method, got {cls!r}."
            )
        if cls.forward is Method.forward:
            raise TypeError(f"register_method({name!r}): {cls.__name__} must override forward, which gives the losses.")
        taken = [setting for setting in _settings_of(cls) if setting in _TAKEN_SETTINGS]
        if taken:
            raise ValueError(
                f"register_method({name!r}): the setting {', '.join(map(repr, taken))} of {cls.__name__} could never "
                "be given, for wrap and configs have an argument of that name: rename it."
            )
        if not force and _METHODS.get(name, cls) is not cls:
            raise ValueError(
                f"The method {name!r} is there already ({_METHODS[name].__name__}); choose another name, or replace it "
                f"with register_method({name!r}, force=True)."
            )
        _METHODS[name] = cls
        return cls

    return register


def make_method(name: str, student: StudentInfo, **settings: Any) -> Method:
    """Build a method for a student; raise as `check_settings` does, and for a setting out of range."""
    check_settings(name, settings)
    return method_class(name)(student, **settings)


def check_settings(name: str, settings: Iterable[str]) -> None:
    """Raise TypeError for a setting that a method does not have, or a missing one that it cannot do without."""
    known = method_settings(name)
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        has = f"its settings are: {', '.join(known)}" if known else "it has no settings"
        raise TypeError(f"The method {name!r} has no setting {', '.join(map(repr, unknown))}; {has}.")
    missing = [setting for setting, needed in known.items() if needed and setting not in settings]
    if missing:
        raise TypeError(f"The method {name!r} needs the setting {', '.join(map(repr, missing))}.")


def method_settings(name: str) -> dict[str, bool]:
    """Names of a method's settings and whether each must be given; ``**kwargs`` are those of the class it builds on."""
    return _settings_of(method_class(name))


def _settings_of(cls: type[Method]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        variadic = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for parameter in parameters:
            if parameter.name not in ("self", "student") and parameter.kind is not parameter.VAR_KEYWORD:
                found.setdefault(parameter.name, parameter.default is parameter.empty)
        if not variadic:
            break
    return found
