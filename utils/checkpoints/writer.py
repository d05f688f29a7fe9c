"""Writer of checkpoints: `<checkpoint_path>/step_<N>/` with the weights, all else that the next step depends on, and a
record with checksums.

Written in the background, beside its place, and renamed when it is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from common.errors import UserError
from common.files import replacing, sync_folder
from utils.checkpoints.puzzles import PUZZLES
from utils.checkpoints.record import (
    RECORD_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    CheckpointRecord,
    FileRecord,
    record_text,
    step_folders,
    step_of,
)
from utils.checkpoints.safetensors_file import write_safetensors
from utils.checkpoints.stored_tensors import HostTensor

PRUNED = ".pruned"  # suffix of a folder that is being removed


@dataclass(frozen=True)
class Snapshot:
    """The state of a run at one step, which stays while the run goes on.

    Attributes:
        weights: the arrays of the weights file.
        training: the arrays of the other file.
        record: the rest, still without `files`.
        puzzles: of `puzzles_text`, what the model is for.
    """

    weights: Mapping[str, HostTensor]
    training: Mapping[str, HostTensor]
    record: CheckpointRecord
    puzzles: str | None = None


def write_checkpoint(snapshot: Snapshot, checkpoint_path: Path) -> Path:
    """Write a step folder, and sync it to the disk. One of the same step is replaced.

    The folder is written under another name, its record last. So a folder named `step_<N>` is complete, and so is a
    `.step_<N>.partial` with an undamaged record: its rename was interrupted (`run_folder.py` finishes it).

    Args:
        snapshot: the content.
        checkpoint_path: the run's folder.

    Returns:
        The folder.

    Raises:
        OSError: if it can't be written; what was written is removed.
    """
    record = snapshot.record
    folder = checkpoint_path / f"step_{record.step}"
    with replacing(folder) as partial:
        partial.mkdir()  # without its parents: a run's folder that has vanished is not silently made again
        metadata = {"format": "mlx", "step": str(record.step)}
        if snapshot.puzzles is not None:
            metadata[PUZZLES] = snapshot.puzzles
        files = {}
        for name, tensors in ((WEIGHTS_FILE, snapshot.weights), (TRAINING_FILE, snapshot.training)):
            sha256 = write_safetensors(partial / name, tensors, metadata)
            files[name] = FileRecord(bytes=(partial / name).stat().st_size, sha256=sha256)
        with open(partial / RECORD_FILE, "w", encoding="utf-8") as file:
            file.write(record_text(record.model_copy(update={"files": files})))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(partial)
    return folder


def prune(checkpoint_path: Path, keep: int, best_step: int | None) -> list[Path]:
    """Remove all but the newest `keep` step folders and the best one, and return what was removed."""
    removed = []
    for folder in step_folders(checkpoint_path)[keep:]:
        if step_of(folder) == best_step:
            continue
        pruned = folder.with_name(f".{folder.name}{PRUNED}")  # renamed first, so that `step_<N>` is never incomplete
        folder.rename(pruned)
        shutil.rmtree(pruned, ignore_errors=True)
        removed.append(folder)
    return removed


class CheckpointWriter:
    """Context manager that writes checkpoints in a background thread, one at a time, while training goes on.

    Args:
        checkpoint_path: the run's folder.
        keep: how many step folders to keep, besides the best; None keeps all.
    """

    def __init__(self, checkpoint_path: Path, keep: int | None):
        self.path = checkpoint_path
        self._keep = keep
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Begin to write, after the previous checkpoint is written: at most two snapshots are in memory.

        Raises:
            UserError: if the previous one could not be written.
        """
        self.wait()
        self._running = self._executor.submit(self._write, snapshot)

    def check(self) -> None:
        """Raise the error of a write in the background, if there is one, without waiting.

        Raises:
            UserError: if the last checkpoint could not be written.
        """
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            UserError: if it could not be written.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def finish(self, seconds: float) -> None:
        """Wait for a write under way, at most `seconds`, before the process ends. May be called in any thread."""
        if (running := self._running) is not None:
            running.result(seconds)

    def _write(self, snapshot: Snapshot) -> None:
        try:
            folder = write_checkpoint(snapshot, self.path)
            tqdm.write(f"saved {folder}")
            if self._keep is not None:
                best = snapshot.record.progress.best
                prune(self.path, self._keep, best.step if best else None)
        except OSError as error:
            raise UserError(self._explain(error, snapshot.record.step)) from error

    def _explain(self, error: OSError, step: int) -> str:
        problem = f"checkpoint step_{step} can't be written to {self.path}: {error.strerror or error}"
        if not self.path.is_dir():
            return f"{problem}; the folder has vanished, and the run's checkpoints with it"
        whole = step_folders(self.path)
        kept = f"{whole[0].name} is intact" if whole else "there is no earlier one"
        return f"{problem}; {kept}: make room, or the folder writable, and continue with resume=auto"

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._executor.shutdown()
