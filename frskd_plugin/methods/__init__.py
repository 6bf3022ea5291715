"""Training methods, one file each, behind one interface (`Method`). Torch and `frskd_plugin.core` only."""

from frskd_plugin.methods.base import Method, StudentInfo
from frskd_plugin.methods.registry import make_method, method_names, register_method

__all__ = ["Method", "StudentInfo", "make_method", "method_names", "register_method"]
