"""Finds packages that overwrite each other's files: OpenMMLab originals beside their forks, and several OpenCVs.

The original OpenMMLab packages and the ``onedl-*`` forks provide the same import names. pip installs one over the other
without a word; what is left is a mixture of both, which fails with errors that name neither.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping

from frskd_plugin.version import __version__

# import name -> distributions that provide it; at most one of them may be installed
PROVIDERS: dict[str, tuple[str, ...]] = {
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
    "mmcv": ("mmcv", "mmcv-lite", "mmcv-full", "onedl-mmcv"),
    "mmseg": ("mmsegmentation", "onedl-mmsegmentation"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "cv2": (
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
}


def installed_versions() -> dict[str, str]:
    """Version of each installed distribution of `PROVIDERS`, by name.

    A distribution whose metadata carry no version (the torn rest of a removed package) counts as not installed.
    """
    found = {}
    for names in PROVIDERS.values():
        for name in names:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            if version:
                found[name] = version
    return found


def versions_text() -> str:
    """Versions of this package, timm and OpenMMLab for a log, a line each; mmengine's own logs tell torch's."""
    import timm

    versions = {"frskd_plugin": __version__, "timm": timm.__version__, **installed_versions()}
    return "Packages:\n" + "\n".join(f"    {name}: {version}" for name, version in versions.items())


def mixed_stacks(installed: Mapping[str, str]) -> list[str]:
    """Messages about distributions that must not be installed together, each with the commands that mend it.

    Args:
        installed: version of each installed distribution, by name.

    Example:
        >>> mixed_stacks({"onedl-mmcv": "2.3.6", "opencv-python": "5.0.0"})
        []
        >>> print(mixed_stacks({"mmcv": "2.1.0", "onedl-mmcv": "2.3.6"})[0])  # doctest: +ELLIPSIS
        mmcv 2.1.0 and onedl-mmcv 2.3.6 both provide `mmcv` and overwrite each other's files. Keep one: ...
    """
    messages = []
    for import_name, providers in PROVIDERS.items():
        found = [name for name in providers if name in installed]
        if len(found) < 2:
            continue
        listed = " and ".join(f"{name} {installed[name]}" for name in found)
        # the forks and opencv-python are what the tested set has; `uninstall` of one tears files out of the other
        keep = found[-1] if import_name != "cv2" else found[0]
        messages.append(
            f"{listed} both provide `{import_name}` and overwrite each other's files. Keep one: "
            f"`pip uninstall -y {' '.join(found)}`, then `pip install --no-cache-dir {keep}=={installed[keep]}`."
        )
    doubled = any("`cv2`" not in message for message in messages)
    return messages if doubled else messages + _mixed_families(installed)


def _mixed_families(installed: Mapping[str, str]) -> list[str]:
    """A message where, say, the original mmengine serves a fork of mmseg: it imports, and fails much later."""
    names = [name for key, providers in PROVIDERS.items() if key != "cv2" for name in providers if name in installed]
    forks = [name for name in names if name.startswith("onedl-")]
    originals = [name for name in names if name not in forks]
    if not forks or not originals:
        return []
    return [
        f"{', '.join(originals)} (original OpenMMLab) and {', '.join(forks)} (onedl forks) are not made for each "
        f"other. Use one family: `pip uninstall -y {' '.join(originals)}`, then install their forks (or the reverse)."
    ]


def warn_about_mixed_stacks() -> None:
    """Warn once about each mixture that is installed.

    Example:
        >>> warn_about_mixed_stacks()
    """
    for message in mixed_stacks(installed_versions()):
        warnings.warn(message, stacklevel=2)
