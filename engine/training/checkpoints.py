"""The checkpoints of a training: what they were made of, which of them are whole; and how the model is written."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from engine.differences import difference
from engine.errors import UserError
from engine.files import filled_folder, sync_files, write_atomically
from engine.model.digest import checkpoint_digest

_MADE_OF = "made_of.json"  # beside the checkpoints
_WHOLE = "whole.json"  # in a checkpoint, once all else is on disk: the bytes of each of its files
_WRITE_ERRORS = ("os error", "inline_container", "iostream")  # in what safetensors and torch say of a full disk
# Files of an older model that would be read along with a new one's.
_STALE = ("*.safetensors", "*.safetensors.index.json", "generation_config.json", "chat_template.jinja")


def made_of(
    kind: str,
    recipe: Any,
    device: str,
    *,
    rollouts: Sequence[Path] | Mapping[Path, float] = (),  # or each with its weight
    **models: Path | None,
) -> dict[str, object]:
    """All that a training's result depends on, as JSON values: its recipe, and the contents of files and models.

    Raises UserError for a file that is not there.
    """
    stated = {"model": kind, "device": device, "recipe": asdict(recipe)}
    stated |= {name: checkpoint_digest(folder) for name, folder in models.items() if folder is not None}
    stated |= {"rollouts": [_file_digest(path) for path in rollouts]} if rollouts else {}
    stated |= {"weights": list(rollouts.values())} if isinstance(rollouts, Mapping) else {}
    return json.loads(json.dumps(stated))


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a folder, all of one training; those of any other are refused, or with `overwrite` dropped."""

    folder: Path
    made_of: dict[str, object]
    overwrite: bool = False

    @contextmanager
    def opened(self) -> Iterator[Path | None]:
        """Keeps other processes out of the folder. Gives the last whole checkpoint, None where there is none.

        Those that are not whole are taken away. Raises UserError for a folder that another process writes to, or
        that holds checkpoints of another training.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another training is writing to {self.folder}") from None
            yield self._last_whole()
        finally:
            os.close(descriptor)

    def _last_whole(self) -> Path | None:
        found = checkpoint_folders(self.folder)
        if self.overwrite:
            _remove(found)
        elif found:
            self._check_same()
        whole = [folder for folder in found if is_whole(folder)] if not self.overwrite else []
        torn = [folder for folder in found if folder.exists() and folder not in whole]
        if torn and torn[-1] == found[-1]:
            start = f"from {whole[-1].name}" if whole else "from the start"
            print(f"{torn[-1]} is not whole and is passed over: training goes on {start}", file=sys.stderr)
        _remove(torn)
        if not whole:
            write_atomically(self.folder / _MADE_OF, json.dumps(self.made_of, indent=1).encode() + b"\n")
        return whole[-1] if whole else None

    def _check_same(self) -> None:
        path, advice = self.folder / _MADE_OF, "(choose another --work, or --overwrite)"
        try:
            theirs = json.loads(path.read_bytes())
            changes = difference(theirs, self.made_of)
        except FileNotFoundError:
            raise UserError(f"{self.folder} holds checkpoints and no {_MADE_OF} that says of what {advice}") from None
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error} {advice}") from None
        if changes:
            raise UserError(f"{self.folder} holds checkpoints of another training: {changes} {advice}")


class MarkWhole(TrainerCallback):
    """Syncs each checkpoint when all of it is written, and marks it as whole."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sync_files(folder)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _WHOLE}
        write_atomically(folder / _WHOLE, json.dumps(sizes).encode())


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, by their steps."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there with all its bytes."""
    try:
        sizes = json.loads((checkpoint / _WHOLE).read_bytes())
        if not isinstance(sizes, dict) or not sizes:
            return False
        return all(type(size) is int and (checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, RecursionError):
        return False


def save_model(out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes a Hugging Face folder: whole, or not at all. Files of `out` that are no part of a model stay there."""
    with readable_errors(out), filled_folder(out, last="config.json", stale=_STALE) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Makes what torch and safetensors raise for a full disk an OSError that names `path`."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if not any(words in str(error) for words in _WRITE_ERRORS):
            raise
        raise OSError(f"{path} cannot be written: {' '.join(str(error).split())[:200]}") from None


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        (folder / _WHOLE).unlink(missing_ok=True)  # first, so that half of it is not taken for a whole one
        shutil.rmtree(folder)


def _file_digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no rollouts at {str(path)!r}")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
