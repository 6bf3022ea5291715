"""``python -m frskd_plugin.doctor MODEL|CONFIG``."""

from __future__ import annotations

import sys

from frskd_plugin.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
