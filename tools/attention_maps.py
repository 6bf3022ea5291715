"""Draw what student and self-teacher look at: ``python tools/attention_maps.py CHECKPOINT IMAGE ...``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("attention_maps"))
