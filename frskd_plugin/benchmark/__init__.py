"""Measures what FRSKD costs: `tools/benchmark.py` is its command line."""
