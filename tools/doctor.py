"""Old name of tools/check.py."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("doctor"))
