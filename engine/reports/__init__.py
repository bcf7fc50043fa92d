"""What a run leaves behind: result rows, the ledger that resumes it, tables and one HTML page."""

from engine.reports.html import report_html, write_report
from engine.reports.rows import FIELDS, read_rows, result_row, row_line
from engine.reports.run_ledger import LedgerInUse, RunLedger, ledger_path, open_run
from engine.reports.tables import (
    Comparison,
    StrategySummary,
    compare,
    markdown_table,
    summarize,
    terminal_table,
)

__all__ = [
    "FIELDS",
    "Comparison",
    "LedgerInUse",
    "RunLedger",
    "StrategySummary",
    "compare",
    "ledger_path",
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
