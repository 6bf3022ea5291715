"""Measure what FRSKD costs: ``python tools/benchmark.py step --model wrn_16_2 --threads 1``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("benchmark"))
