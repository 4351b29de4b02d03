"""Comparison of runs: tables with intervals, pictures, one self-contained page."""

from __future__ import annotations

from .runs import Group, ReportError, Run, group_runs, read_run
from .tables import table_rows
from .write import report

__all__ = ["Group", "ReportError", "Run", "group_runs", "read_run", "report", "table_rows"]
