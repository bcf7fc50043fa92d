"""What runs store: result rows, the journal that resumes a run, and what belongs to both.

`files` writes a file whole or not at all, `shards` divides a run and puts it together again, `digests` sums up the
problems of a run, `pools` and `statistics` compute accuracies and intervals from stored rows, `provenance` states the
machine and the commit of a report.
"""

from engine.results.journal import Journal, JournalInUse, journal_path, open_run, read_journal, seconds_by_strategy
from engine.results.rows import FIELDS, Row, error_row, is_error_row, read_results, read_rows, result_row, row_line
from engine.results.shards import Shard, merge_shards

__all__ = [
    "FIELDS",
    "Journal",
    "JournalInUse",
    "Row",
    "Shard",
    "error_row",
    "is_error_row",
    "journal_path",
    "merge_shards",
    "open_run",
    "read_journal",
    "read_results",
    "read_rows",
    "result_row",
    "row_line",
    "seconds_by_strategy",
]
