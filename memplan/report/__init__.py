"""Figures and PDF pages from saved answers and run folders."""

from memplan.report.pages import write_report

__all__ = ["write_report"]
