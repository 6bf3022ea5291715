"""Write the student as ONNX or torch.export file: ``python tools/export_model.py CONFIG|MODEL CHECKPOINT OUT``."""

import sys

from frskd_plugin.commands import run

if __name__ == "__main__":
    sys.exit(run("export_model"))
