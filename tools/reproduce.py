"""Make a table of the paper: ``python tools/reproduce.py table1 --data data``."""

from __future__ import annotations

import sys

from frskd_plugin.reproduce.command import main

if __name__ == "__main__":
    sys.exit(main())
