"""Training methods, one file each, behind one interface (`Method`). Torch and `frskd_plugin.core` only."""

from frskd_plugin.methods.base import DataNeeds, Method, StudentInfo
from frskd_plugin.methods.registry import (
    check_settings,
    make_method,
    method_class,
    method_names,
    method_settings,
    register_method,
)

__all__ = [
    "DataNeeds",
    "Method",
    "StudentInfo",
    "check_settings",
    "make_method",
    "method_class",
    "method_names",
    "method_settings",
    "register_method",
]
