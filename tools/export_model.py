"""Write the student as ONNX or torch.export file: ``python tools/export_model.py CONFIG|MODEL CHECKPOINT OUT``."""

from __future__ import annotations

import sys

from frskd_plugin.deploy.command import main

if __name__ == "__main__":
    sys.exit(main())
