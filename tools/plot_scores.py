"""Draw the validation curves of several runs: ``python tools/plot_scores.py WORK_DIR ... -o scores.png``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("plot_scores"))
