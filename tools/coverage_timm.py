"""Old name of `frskd support timm`."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("coverage_timm"))
