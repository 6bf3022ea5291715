"""``python -m frskd_plugin.coverage``, the same as tools/coverage_timm.py."""

from __future__ import annotations

import sys

from frskd_plugin.coverage.command import main

if __name__ == "__main__":
    sys.exit(main())
