"""Tries one model of every module of timm, as a classifier and as the backbone of a segmentor.

Run it as ``python tools/coverage_timm.py`` or ``python -m frskd_plugin.coverage``.
"""
