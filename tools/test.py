"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``, with the options of OpenMMLab."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("test"))
