"""Write the plain student of a training checkpoint: ``python tools/export_student.py IN OUT``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("export_student"))
