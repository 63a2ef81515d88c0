"""Reports: self-contained HTML pages and CSV tables of results."""

from glocal.report.page import render_report, write_csv, write_report

__all__ = ["render_report", "write_csv", "write_report"]
