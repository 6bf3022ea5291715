"""The whole job on data it draws itself, in about five minutes: ``python tools/demo.py``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("demo"))
