"""`ttc-eval`: lm-evaluation-harness's own command line, with the model `ttc`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import run_command
from engine.errors import UserError
from engine.files import write_atomically

if TYPE_CHECKING:
    from engine.plugins.lm_eval import SearchingLM


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default this process's own, and returns its exit status (see `run_command`)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _evaluate(argv), argv)


def _evaluate(argv: list[str]) -> int:
    """Calls lm-eval; where it writes results, the rows of the searches go beside them."""
    try:
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging

        from engine.plugins.lm_eval import SearchingLM
    except ImportError as error:
        missing = f"`ttc-eval` needs {error.name}, which is missing"
        raise UserError(f"{missing}: pip install 'ttc-engine[eval]'") from None
    setup_logging()
    SearchingLM.last = None
    before = sys.argv
    sys.argv = ["ttc-eval", *argv]  # where lm-eval reads its arguments
    try:
        harness = HarnessCLI()
        arguments = harness.parse_args()
        folder = _folder(getattr(arguments, "output_path", None))
        there = set() if folder is None else _results(folder)
        harness.execute(arguments)
    except SystemExit as end:  # the parser's, which has said why, or a task's
        if isinstance(end.code, str):
            raise UserError(end.code) from None
        return end.code or 0
    finally:
        sys.argv = before
    if folder is not None and SearchingLM.last is not None and SearchingLM.last.rows:
        for path in _results(folder) - there:
            _write_beside(path, SearchingLM.last)
    return 0


def _folder(output_path: str | None) -> Path | None:
    """Where lm-eval writes: the folder that is named, or that of a file."""
    if not output_path:
        return None
    path = Path(output_path)
    return path.parent if path.suffix == ".json" else path


def _results(folder: Path) -> set[Path]:
    """The files of results under a folder. lm-eval names them `results_TIME.json`, or `NAME_TIME.json`."""
    return {path for path in folder.rglob("*_*.json") if path.is_file()}


def _write_beside(path: Path, model: SearchingLM) -> None:
    beside = path.with_name(f"ttc_{path.stem.rpartition('_')[2]}.jsonl")
    write_atomically(beside, model.ledger_bytes())
    logging.getLogger(__name__).info("the rows of the searches are in %s", beside)


if __name__ == "__main__":
    sys.exit(main())
