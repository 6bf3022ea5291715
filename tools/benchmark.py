"""Measures what FRSKD costs: ``python tools/benchmark.py step --model wrn_16_2 --threads 1 --json cost.json``."""

from __future__ import annotations

import sys

from frskd_plugin.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
