"""The metrics of a run in `metrics.jsonl`: one line for each call of `log`, without account or server.

A resumed run continues the file where its checkpoint ends.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from common.errors import UserError

HISTORY_FILE = "metrics.jsonl"


class History:
    """Context manager that appends to a run's `metrics.jsonl`.

    Args:
        checkpoint_path: the run's folder.
        length: bytes to keep of an existing file; what was logged after the resumed checkpoint is cut off.
    """

    def __init__(self, checkpoint_path: Path, length: int = 0):
        # Unbuffered: what could not be written must not be written again when the file is closed.
        self._file = open(checkpoint_path / HISTORY_FILE, "ab", buffering=0)  # noqa: SIM115 - until the end of the run
        held = self._file.tell()
        if held < length:
            tqdm.write(
                f"warning: {self._file.name} holds {held:,} bytes, {length:,} were logged before the checkpoint; what "
                "is missing is lost, and the log goes on from here",
                file=sys.stderr,
            )
        self._file.truncate(min(length, held))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add a line. NaN and infinities, which JSON lacks, become null.

        Raises:
            UserError: if it can't be written.
        """
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            self._file.write(json.dumps({"step": step} | values).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"{self._file.name} can't be written: {error.strerror}; the checkpoints so far are intact: make room, "
                "and continue with resume=auto"
            ) from error

    def synced_length(self) -> int:
        """Sync the file to the disk, and return its length in bytes, for the checkpoint about to be written."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
