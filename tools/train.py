"""Train a classifier or a segmentor: ``python tools/train.py CONFIG [--resume] [--amp] ...``, as in OpenMMLab."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("train"))
