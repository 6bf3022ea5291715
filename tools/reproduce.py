"""Make a table of the paper: ``python tools/reproduce.py table1 --data data``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("reproduce"))
