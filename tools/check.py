"""Try a model or a config on random data before it trains: ``python tools/check.py MODEL|CONFIG``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("check"))
