"""One HTML page about a run: ``python tools/report.py WORK_DIR [-o report.html] [--compare WORK_DIR2 ...]``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("report"))
