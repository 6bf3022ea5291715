"""Write the training lists of VOC2007 + VOC2012: ``python tools/prepare_voc.py DEVKIT``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("prepare_voc"))
