"""Results of a comparison -> a page that opens anywhere, and a table for spreadsheets."""

from glocal.report.page import render_report, write_csv, write_report

__all__ = ["render_report", "write_csv", "write_report"]
