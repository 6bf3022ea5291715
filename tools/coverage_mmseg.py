"""Try a config of every family of mmsegmentation: ``python tools/coverage_mmseg.py [--json FILE]``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("coverage_mmseg"))
