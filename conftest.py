"""Tests that pytest leaves out: what `make test-mmdet` runs where mmdetection is missing, and the support matrix."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version

HAS_MMDET = all(find_spec(name) is not None for name in ("mmdet", "mmcv")) and find_spec("mmcv._ext") is not None
# FRSKDTask needs timm >= 1.0.27, and its module says so when it is imported
HAS_TASK = Version(version("timm")) >= Version("1.0.27")
collect_ignore_glob = [] if HAS_MMDET else ["frskd_plugin/mmdet/*", "tests/mmdet/*"]
collect_ignore = [] if HAS_TASK else ["frskd_plugin/timm/task.py", "tests/timm/test_task.py"]


def pytest_report_header() -> str:
    """Say so."""
    return f"mmdetection: {'tested too' if HAS_MMDET else 'not installed with operators; `make test-mmdet` tests it'}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the support matrix, which takes an hour, to ``pytest -m support``."""
    is_matrix = collection_path == Path(__file__).parent / "tests" / "support"
    return True if is_matrix and "support" not in config.option.markexpr else None
