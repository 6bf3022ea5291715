"""One HTML page about a run: ``python tools/report.py WORK_DIR [-o report.html] [--compare WORK_DIR2 ...]``."""

from __future__ import annotations

import sys

from frskd_plugin.report.command import main

if __name__ == "__main__":
    sys.exit(main())
