"""Which installed packages overwrite each other, told by fake metadata: nothing is installed here."""

from __future__ import annotations

import importlib.metadata
import re
import warnings

import pytest

pytest.importorskip("mmengine", reason="frskd_plugin.mmengine needs mmengine")

from frskd_plugin.mmengine import registration  # noqa: E402

FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmsegmentation": "1.4.2", "opencv-python": "5.0.0"}
ORIGINALS = {"mmengine": "0.10.7", "mmcv": "2.1.0", "mmsegmentation": "1.2.2", "opencv-python-headless": "4.9.0"}


@pytest.mark.parametrize("stack", [FORKS, ORIGINALS, {}, {"mmcv-lite": "2.1.0"}])
def test_one_family_is_fine(stack, monkeypatch):
    def version(name):
        if name not in stack:
            raise importlib.metadata.PackageNotFoundError(name)
        return stack[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert registration.installed_versions() == stack
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registration.warn_about_mixed_stacks()


@pytest.mark.parametrize(
    ("installed", "messages"),
    [
        (
            {"mmcv-lite": "1.0", "onedl-mmcv": "2.0"},
            [
                "mmcv-lite 1.0 and onedl-mmcv 2.0 both provide `mmcv` .* Keep one: `pip uninstall -y mmcv-lite "
                "onedl-mmcv`, then `pip install --no-cache-dir onedl-mmcv==2.0`"
            ],
        ),
        (
            {**FORKS, "opencv-python-headless": "5.0.1"},
            ["both provide `cv2` .* `pip uninstall -y opencv-python opencv-python-headless`.* opencv-python==5.0.0`"],
        ),
        ({**FORKS, **ORIGINALS}, [f"both provide `{name}`" for name in ("mmengine", "mmcv", "mmseg", "cv2")]),
        (
            {"mmengine": "0.10.7", "onedl-mmcv": "2.3.6"},
            [r"mmengine \(original OpenMMLab\) and onedl-mmcv \(onedl forks\) are not made for each other."],
        ),
    ],
)
def test_mixtures_are_named(installed, messages):
    found = registration.mixed_stacks(installed)
    assert len(found) == len(messages)
    assert all(re.search(message, text) for message, text in zip(messages, found, strict=True))
