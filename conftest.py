"""What pytest leaves out where mmdetection or the operators of mmcv are missing: `make test-mmdet` has them."""

from __future__ import annotations

from importlib.util import find_spec

HAS_MMDET = all(find_spec(name) is not None for name in ("mmdet", "mmcv")) and find_spec("mmcv._ext") is not None
collect_ignore_glob = [] if HAS_MMDET else ["frskd_plugin/mmdet/*", "tests/mmdet/*"]


def pytest_report_header() -> str:
    """Say so."""
    return f"mmdetection: {'tested too' if HAS_MMDET else 'not installed with operators; `make test-mmdet` tests it'}"
