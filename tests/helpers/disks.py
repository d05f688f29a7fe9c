"""Disks that are full or read-only, for tests that say what becomes of a run on them."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_BYTES = 256 << 10


def _mount(*arguments: str) -> bool:
    command = shutil.which("mount")
    return command is not None and not subprocess.run([command, *arguments], capture_output=True).returncode


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """Give `folder` room for DISK_BYTES in all; yields what the system says when they are used up.

    A file system of its own where the user may mount one, elsewhere a limit for the size of any file that this process
    writes. That comes to the same for whoever writes one file larger than DISK_BYTES.
    """
    folder.mkdir(exist_ok=True)
    if _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)):
        try:
            yield "No space left on device"
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, before[1]))  # Python ignores the signal of going beyond
        try:
            yield "File too large"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[str]:
    """Let nothing be written below `folder`, as far as the user may arrange that; yields what the system says then."""
    if _mount("--bind", str(folder), str(folder)):
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
            yield "Read-only file system"
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    elif os.geteuid() != 0:
        folder.chmod(0o555)
        try:
            yield "Permission denied"
        finally:
            folder.chmod(0o755)
    else:  # the superuser may write everywhere, but not into a file as if it were a folder
        aside = folder.rename(folder.with_name(f"{folder.name}-aside"))
        folder.touch()
        try:
            yield "Not a directory"
        finally:
            folder.unlink()
            aside.rename(folder)
