"""Training methods, one file each, behind one interface (`Method`). Torch and `frskd_plugin.core` only."""

from frskd_plugin.methods.base import DataNeeds, Method, StudentInfo
from frskd_plugin.methods.registry import make_method, method_class, method_names, register_method

__all__ = ["DataNeeds", "Method", "StudentInfo", "make_method", "method_class", "method_names", "register_method"]
