"""Write the FRSKD config for a plain config of mmsegmentation: ``python tools/convert.py CONFIG -o OUT``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("convert"))
