"""``python -m frskd_plugin NAME ...``, the same as ``frskd NAME ...``."""

from __future__ import annotations

import sys

from frskd_plugin.commands import main

if __name__ == "__main__":
    sys.exit(main())
