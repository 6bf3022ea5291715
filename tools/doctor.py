"""Examine a model before it trains: ``python tools/doctor.py MODEL|CONFIG``, e.g. ``wrn_16_2 --set width=2``."""

from __future__ import annotations

import sys

from frskd_plugin.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
