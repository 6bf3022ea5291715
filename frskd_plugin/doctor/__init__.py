"""Examines a model before it trains: `examine` in a program, ``python -m frskd_plugin.doctor`` on the command line."""

from frskd_plugin.doctor.describe import describe
from frskd_plugin.doctor.examination import examine
from frskd_plugin.doctor.report import Report

__all__ = ["Report", "describe", "examine"]
