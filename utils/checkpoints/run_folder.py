"""The folder of a run, `checkpoints/<project>/<run>`: locked by one process, which clears what a killed run left."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType

from common.errors import UserError
from common.files import PARTIAL, REPLACED, move_into_place
from utils.checkpoints.record import STEP_FOLDER, DamagedCheckpointError, step_folders, verify
from utils.checkpoints.writer import PRUNED

CODE_FOLDER = "code"
LOCK_FILE = ".lock"
_REPOSITORY = Path(__file__).resolve().parents[2]


class RunFolder:
    """Context manager that keeps other runs out of a run's folder from `claim` to its end.

    Args:
        path: the folder; nothing in it changes before `claim`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: int | None = None

    def claim(self) -> None:
        """Make the folder if it is missing, lock it, and remove what a killed run left in it. May be repeated.

        Raises:
            UserError: if it can't be made or written to, or another process has locked it.
        """
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"checkpoint_path {self.path} can't be used: {error.strerror}") from error
        self._lock = lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system releases it when the process ends
        except BlockingIOError:
            self._release()
            raise UserError(
                f"checkpoint_path {self.path} is in use by another run; wait for it, or choose another"
            ) from None
        except OSError:
            pass  # a file system without locks
        _tidy(self.path)

    def refuse_earlier_steps(self) -> None:
        """Raise UserError if the folder has the steps of an earlier run, with which new ones must not be mixed."""
        earlier = step_folders(self.path)
        if earlier:
            raise UserError(
                f"checkpoint_path {self.path} holds {earlier[0].name} of an earlier run; continue it with resume=auto, "
                "choose another folder, or remove this one"
            )

    def save_code(self) -> None:
        """Copy the source of the package `models` into `code/`, beside the weights."""
        target = self.path / CODE_FOLDER
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(_REPOSITORY / "models", target / "models", ignore=shutil.ignore_patterns("__pycache__"))

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


def set_aside(folder: Path, why: str) -> Path:
    """Rename `step_<N>` to `step_<N>.<why>`, which is no checkpoint's name, and return the new path."""
    target = folder.with_name(f"{folder.name}.{why}")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.{why}-{number}")
    return folder.rename(target)


def _tidy(path: Path) -> None:
    """Finish interrupted renames of step folders, and remove incomplete ones."""
    for child in path.glob(".step_*_all_preds.*"):
        predictions = child.with_name(child.stem.removeprefix("."))
        if child.suffix == REPLACED and not predictions.exists():
            child.rename(predictions)
        elif child.suffix in (PARTIAL, REPLACED):
            shutil.rmtree(child, ignore_errors=True)
    leftovers = [
        child
        for child in path.iterdir()
        if child.suffix in (PARTIAL, REPLACED, PRUNED) and STEP_FOLDER.fullmatch(child.stem.removeprefix("."))
    ]
    for child in sorted(leftovers, key=lambda child: child.suffix != PARTIAL):  # what replaces before what is replaced
        step_folder = child.with_name(child.stem.removeprefix("."))
        if child.suffix == REPLACED and not step_folder.exists():
            child.rename(step_folder)
            continue
        if child.suffix == PARTIAL:
            try:
                verify(child)
            except DamagedCheckpointError:
                pass
            else:
                move_into_place(child, step_folder)
                continue
        shutil.rmtree(child, ignore_errors=True)
