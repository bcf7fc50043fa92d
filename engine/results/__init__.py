"""What runs store: result rows, the journal that resumes a run, and what belongs to both.

`files` writes a file whole or not at all, `digests` sums up the problems of a run, `pools` and `statistics` compute
accuracies and intervals from stored rows, `provenance` states the machine and the commit of a report.
"""

from engine.results.journal import Journal, JournalInUse, journal_path, open_run, read_journal, seconds_by_strategy
from engine.results.rows import FIELDS, read_rows, result_row, row_line

__all__ = [
    "FIELDS",
    "Journal",
    "JournalInUse",
    "journal_path",
    "open_run",
    "read_journal",
    "read_rows",
    "result_row",
    "row_line",
    "seconds_by_strategy",
]
