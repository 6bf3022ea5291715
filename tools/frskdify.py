"""Write the FRSKD config for a plain config of mmsegmentation: ``python tools/frskdify.py CONFIG -o OUT``."""

from __future__ import annotations

import sys

from frskd_plugin.mmseg.frskdify_command import main

if __name__ == "__main__":
    sys.exit(main())
