"""Try a model of every module of timm with FRSKD: ``python tools/coverage_timm.py [--segmentor]``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("coverage_timm"))
