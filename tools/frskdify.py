"""Old name of tools/convert.py."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("frskdify"))
