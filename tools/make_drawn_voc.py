"""Draw a small VOC devkit, the same for the same seed: ``python tools/make_drawn_voc.py OUT``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("make_drawn_voc"))
