"""Writes files atomically: an interrupted writer leaves either the old version or the new one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

_UNFINISHED = ".unfinished-model"  # a name that no folder of a user's has


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Has an OSError of the block, such as that of a full disk, name the file where it does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a temporary file beside `path`, syncs it and renames it over `path`.

    Creates missing folders and follows a symbolic link. A target that is no regular file (a pipe,
    /dev/null) is written to directly. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    with naming(path):
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


@contextlib.contextmanager
def filled_folder(path: str | os.PathLike[str], *, last: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary folder whose files are synced and take their places in `path` when the block ends without an error.

    A folder that is new appears whole. In one that exists the file `last` is taken away first and put in place last:
    until then the folder lacks it, and is no mix of old and new. Other files stay, but those of the patterns `stale`.
    Raises OSError.
    """
    target = Path(os.path.realpath(path))
    # Within a folder that exists, which may be a file system of its own, where nothing can be moved to from beside it.
    temporary = target / _UNFINISHED if target.exists() else target.with_name(f".{target.name}{_UNFINISHED}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_files(temporary)
        if target.exists():
            _move_files(temporary, target, last, stale)
            sync_folder(target)
        else:
            os.rename(temporary, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_files(source: Path, target: Path, last: str, stale: Sequence[str]) -> None:
    """Moves the files of a folder over those of another."""
    (target / last).unlink(missing_ok=True)
    sync_folder(target)
    names = {file.name for file in source.iterdir()}
    for name in names - {last}:
        os.replace(source / name, target / name)
    for old in {old for pattern in stale for old in target.glob(pattern)} - {target / name for name in names}:
        old.unlink()
    sync_folder(target)
    os.replace(source / last, target / last)


def sync_files(folder: Path) -> None:
    """Has all that stands in a folder on disk, the names of its files too."""
    for path in folder.iterdir():
        with naming(path), open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes a file's creation or renaming in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
