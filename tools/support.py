"""Try models of timm or families of mmsegmentation: ``python tools/support.py timm|mmseg [options]``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("support"))
