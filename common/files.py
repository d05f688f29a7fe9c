"""Paths that users type, and files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from common.errors import UserError

# Suffixes of the hidden neighbours of a path: what is being written, and what makes room for it
PARTIAL, REPLACED = ".partial", ".replaced"


def expand_user(path: str | Path) -> Path:
    """Replace a leading `~` or `~user` by that home.

    Raises:
        UserError: if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # not an OSError
        raise UserError(
            f"{path} can't be expanded: {Path(path).parts[0]} is no known home; give the whole path, or ./{path} if "
            "the name begins with ~"
        ) from None


# A configuration's key that names a file or folder; what has no `~` stays as it was typed
HomePath = Annotated[str, AfterValidator(lambda path: str(expand_user(path)) if path.startswith("~") else path)]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of the block that names no file, as one from writing to an open file does, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or folder beside its place, and rename it when it is complete.

    When the block ends without an exception, what was written replaces `path`. Otherwise it is removed, and `path`
    stays as it was.

    Yields:
        `.<name>.partial`, a path where nothing exists yet.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    remove(partial)
    try:
        with naming(path):
            yield partial
            move_into_place(partial, path)
    finally:
        remove(partial)


def move_into_place(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`, in place of what is there, and sync the new name to the disk.

    A folder can't be swapped in one step everywhere: for a moment the old one is called `.<name>.replaced`.
    """
    if path.is_dir():
        replaced = path.with_name(f".{path.name}{REPLACED}")
        remove(replaced)
        path.rename(replaced)
        try:
            partial.rename(path)
        except OSError:
            replaced.rename(path)
            raise
        remove(replaced)
    else:
        partial.rename(path)  # in place of a file that is there
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists; ignore what can't be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, so that they survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
