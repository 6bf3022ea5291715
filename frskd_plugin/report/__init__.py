"""One page about a run, made of its own logs: ``python tools/report.py WORK_DIR``."""
