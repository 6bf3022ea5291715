"""Old name of tools/export.py."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("export_model"))
