"""Feature Refinement via Self-Knowledge Distillation (FRSKD, CVPR 2021) for timm and OpenMMLab.

Importing this package needs torch and timm and imports neither of them: names are handed out when they are first used.
Where mmengine is installed, the OpenMMLab components are registered by name in its root registries, so that
``custom_imports = dict(imports=['frskd_plugin'])`` is all a config needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings

from frskd_plugin import _moved
from frskd_plugin.version import __version__

# PEP 562: the subpackage `frskd_plugin.timm` is never imported before somebody asks for a name of it.
_LAZY_NAMES = {
    "TimmFeatureExtractor": "frskd_plugin.timm.feature_extractor",
    "wrap": "frskd_plugin.timm.wrap",
    "unwrap": "frskd_plugin.timm.wrap",
    "FRSKDTask": "frskd_plugin.timm.task",
}

__all__ = ["__version__", *_LAZY_NAMES]


def __getattr__(name: str) -> object:
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    raise AttributeError(f"module 'frskd_plugin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY_NAMES])


def _register_openmmlab() -> None:
    """Register the OpenMMLab components where mmengine is installed; report a broken installation once."""
    if importlib.util.find_spec("mmengine") is None:
        return
    try:
        importlib.import_module("frskd_plugin.mmengine")
    except Exception as error:  # whatever a broken installation raises: the timm side must go on working
        warnings.warn(
            f"mmengine is installed but cannot be imported, so the OpenMMLab components of frskd_plugin are not "
            f"registered ({type(error).__name__}: {error}). `import frskd_plugin.mmengine` shows the whole error.",
            stacklevel=3,
        )


_moved.install()
_register_openmmlab()
