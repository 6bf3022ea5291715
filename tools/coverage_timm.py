"""Tries a model of every module of timm with FRSKD: ``python tools/coverage_timm.py [--segmentor]``."""

from __future__ import annotations

import sys

from frskd_plugin.coverage.command import main

if __name__ == "__main__":
    sys.exit(main())
