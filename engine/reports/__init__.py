"""What is shown of result rows: tables, one HTML page, and the progress of a run."""

from engine.reports.html import report_html, write_report
from engine.reports.tables import (
    Comparison,
    StrategySummary,
    compare,
    markdown_table,
    summarize,
    terminal_table,
)

__all__ = [
    "Comparison",
    "StrategySummary",
    "compare",
    "markdown_table",
    "report_html",
    "summarize",
    "terminal_table",
    "write_report",
]
