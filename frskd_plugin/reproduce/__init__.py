"""Makes the paper's tables: runs what is missing and writes them; `tools/reproduce.py` is its command line."""
