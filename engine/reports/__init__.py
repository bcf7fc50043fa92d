"""Reports on the result rows of runs: tables, and one HTML page."""

from engine.reports.html import report_html, write_report
from engine.reports.tables import (
    Comparison,
    StrategySummary,
    compare,
    markdown_table,
    summarize,
    terminal_table,
)
from engine.results.journal import Journal, JournalInUse, journal_path, open_run
from engine.results.rows import FIELDS, read_rows, result_row, row_line

__all__ = [
    "FIELDS",
    "Comparison",
    "Journal",
    "JournalInUse",
    "StrategySummary",
    "compare",
    "journal_path",
    "markdown_table",
    "open_run",
    "read_rows",
    "report_html",
    "result_row",
    "row_line",
    "summarize",
    "terminal_table",
    "write_report",
]
