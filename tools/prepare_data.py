"""Put a published set of images into our layout: ``python tools/prepare_data.py NAME SRC DST``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("prepare_data"))
