"""``python -m frskd_plugin.report WORK_DIR``."""

from __future__ import annotations

import sys

from frskd_plugin.report.command import main

if __name__ == "__main__":
    sys.exit(main())
