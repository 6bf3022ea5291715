"""Old name of `frskd support mmseg`."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("coverage_mmseg"))
