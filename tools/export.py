"""Write what was trained without the training: ``python tools/export.py [CONFIG|MODEL] CHECKPOINT OUT``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("export"))
