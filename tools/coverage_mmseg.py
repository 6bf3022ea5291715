"""Tries a config of every family of mmsegmentation with FRSKD: ``python tools/coverage_mmseg.py [--json FILE]``."""

from __future__ import annotations

import sys

from frskd_plugin.coverage.family_command import main

if __name__ == "__main__":
    sys.exit(main())
