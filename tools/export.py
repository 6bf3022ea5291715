"""Write the student of a checkpoint: ``python tools/export.py IN OUT``, or with ``--format onnx|torch_export``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("export"))
