"""The content of a checkpoint besides its arrays: the run's position, its configuration, and checksums of the files.

One JSON file, with a checksum of its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common import __version__
from common.errors import UserError, describe_validation_error

RECORD_FILE = "checkpoint.json"
WEIGHTS_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"
STEP_FOLDER = re.compile(r"step_(\d+)")
_HASH_BYTES = 4 << 20


class DamagedCheckpointError(UserError):
    """A step folder whose content is not what was written. The message names the file and what is wrong with it."""


class Evaluated(BaseModel):
    """An evaluation: its step and its metrics."""

    model_config = ConfigDict(extra="forbid")

    step: int
    metrics: dict[str, float]

    @property
    def quality(self) -> tuple[float, float]:
        """The order of evaluations, higher is better: exact accuracy, then the negative token loss, NaN last.

        Both are means over the sets of the data set.
        """
        means = []
        for name in ("exact_accuracy", "lm_loss"):
            values = [value for key, value in self.metrics.items() if key.rpartition("/")[2] == name]
            means.append(sum(values) / max(1, len(values)))
        accuracy, loss = means
        return -math.inf if math.isnan(accuracy) else accuracy, -math.inf if math.isnan(loss) else -loss


class Progress(BaseModel):
    """The position of a run in its data, and its evaluations so far. An iteration ends with an evaluation.

    Attributes:
        iteration: number of the present iteration.
        epochs_done: epochs of the iterations before it.
        iteration_epochs: epochs of it.
        batches: batches of it that have been trained on.
        evaluated: the step of the last evaluation.
        best: the best evaluation.
        stopped: why `stop_when` ended the run, or None.
    """

    model_config = ConfigDict(extra="forbid")

    iteration: int = Field(default=0, ge=0)
    epochs_done: int = Field(default=0, ge=0)
    iteration_epochs: int = Field(ge=1)
    batches: int = Field(default=0, ge=0)
    evaluated: int | None = None
    best: Evaluated | None = None
    stopped: str | None = None

    def finished(self, epochs: int) -> bool:
        """Return whether a run of `epochs` epochs has nothing left to do."""
        return self.epochs_done >= epochs or self.stopped is not None

    def next_iteration(self, epochs_per_iteration: int, epochs: int) -> None:
        """Begin the next iteration of a run of `epochs` epochs; the last iteration may be shorter."""
        self.epochs_done += self.iteration_epochs
        self.iteration += 1
        self.iteration_epochs = max(1, min(epochs_per_iteration, epochs - self.epochs_done))
        self.batches = 0


class FileRecord(BaseModel):
    """Size and checksum of a file."""

    bytes: int
    sha256: str


class CheckpointRecord(BaseModel):
    """The content of `checkpoint.json`.

    Attributes:
        format: of this record.
        step: steps taken.
        saved_at: date and time, UTC.
        config: the configuration in use.
        data: fingerprints of the two splits.
        progress: the position in the data.
        train_metrics: of `TrainMetrics.record`.
        history_bytes: length of the run's `metrics.jsonl`.
        wandb_run_id: of the W&B run.
        versions: of `current_versions`.
        files: size and checksum of the other files.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    step: int = Field(ge=0)
    saved_at: str
    config: dict[str, Any]
    data: dict[str, str]
    progress: Progress
    train_metrics: dict[str, Any]
    history_bytes: int = Field(ge=0)
    wandb_run_id: str | None
    versions: dict[str, str]
    files: dict[str, FileRecord] = {}


def current_versions() -> dict[str, str]:
    """List the versions that the numbers of a run may depend on.

    Returns:
        `hrm-mlx`, this code's version; `commit`, the repository's, with `-dirty` where tracked files differ from it,
        left out without a repository; `python`, `platform`, `machine`, `mlx` and `numpy`.
    """
    return {
        "hrm-mlx": __version__,
        **_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        **{name: version(name) for name in ("mlx", "numpy")},
    }


@functools.cache  # used at each checkpoint
def _commit() -> dict[str, str]:
    repository = Path(__file__).resolve().parents[2]
    if not (repository / ".git").exists():  # a copy without its history may lie within another repository
        return {}
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # no git, or not our repository
        return {}
    return {"commit": found.stdout.strip()}


def record_text(record: CheckpointRecord) -> str:
    """Return the content of the file."""
    values = record.model_dump()
    return json.dumps({"sha256": _checksum(values), "record": values}, indent=1)


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> CheckpointRecord:
    """Read the record of a step folder.

    Raises:
        DamagedCheckpointError: if it is missing, damaged, or of an unknown format.
    """
    path = folder / RECORD_FILE
    try:
        content = json.loads(path.read_text())
        values = content["record"]
        intact = content["sha256"] == _checksum(values)
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise DamagedCheckpointError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} is damaged: it is not valid JSON with a record and its sha256") from error
    if not intact:
        raise DamagedCheckpointError(f"{path} is damaged: its checksum does not match its content")
    try:
        return CheckpointRecord.model_validate(values)
    except ValidationError as error:
        raise DamagedCheckpointError(describe_validation_error(error, f"{path}, written by another version")) from error


def verify(folder: Path, *names: str) -> CheckpointRecord:
    """Read the record of a step folder and compare the folder's name and its files with it.

    Args:
        folder: the step folder.
        names: the files to compare; none means all.

    Returns:
        The record.

    Raises:
        DamagedCheckpointError: naming the first file that is missing or damaged.
    """
    record = read_record(folder)
    if STEP_FOLDER.fullmatch(folder.name) and step_of(folder) != record.step:
        raise DamagedCheckpointError(f"{folder} holds step {record.step}; rename it to step_{record.step}")
    for name, expected in record.files.items():
        if names and name not in names:
            continue
        path = folder / name
        digest = hashlib.sha256()
        try:
            with open(path, "rb") as file:
                size = path.stat().st_size
                if size != expected.bytes:
                    raise DamagedCheckpointError(f"{path} is damaged: {size} bytes, {expected.bytes} were written")
                while piece := file.read(_HASH_BYTES):
                    digest.update(piece)
        except FileNotFoundError:
            raise DamagedCheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise DamagedCheckpointError(f"{path} can't be read: {error.strerror}") from error
        if digest.hexdigest() != expected.sha256:
            raise DamagedCheckpointError(f"{path} is damaged: its checksum is not the one that was written")
    return record


def step_of(folder: Path) -> int:
    """Return the N of a folder named `step_<N>`.

    Raises:
        UserError: if the folder has another name.
    """
    match = STEP_FOLDER.fullmatch(folder.name)
    if match is None:
        raise UserError(f"checkpoint {folder} is not a step folder; expected a name such as step_1000")
    return int(match[1])


def step_folders(checkpoint_path: Path) -> list[Path]:
    """List the step folders of a run, newest first."""
    if not checkpoint_path.is_dir():
        return []
    folders = [child for child in checkpoint_path.iterdir() if STEP_FOLDER.fullmatch(child.name) and child.is_dir()]
    return sorted(folders, key=step_of, reverse=True)
