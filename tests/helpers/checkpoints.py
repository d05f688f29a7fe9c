"""Checkpoints of a few bytes, for tests that are about files rather than about what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.configs import pretrain_config
from utils.checkpoints.record import CheckpointRecord, Evaluated, Progress
from utils.checkpoints.stored_tensors import HostTensor
from utils.checkpoints.writer import Snapshot, write_checkpoint

DATA = {"train": "a" * 64, "test": "b" * 64}


def record(step: int, *, best: int | None = None, **changes: Any) -> CheckpointRecord:
    """What is known of a run at a step, `best` being the step of its best evaluation."""
    values: dict[str, Any] = {
        "step": step,
        "saved_at": "2025-01-01T00:00:00+00:00",
        "config": pretrain_config(project_name="p", run_name="r").model_dump(),
        "data": DATA,
        "progress": Progress(iteration_epochs=1, batches=step),
        "train_metrics": {"unread": [], "window": [], "skipped": 0, "skipped_in_a_row": 0},
        "history_bytes": 0,
        "wandb_run_id": "abc123",
        "versions": {"mlx": "0"},
    }
    values |= changes
    if best is not None:
        values["progress"].best = Evaluated(step=best, metrics={"eval/exact_accuracy": 0.5, "eval/lm_loss": 1.0})
    return CheckpointRecord(**values)


def snapshot(step: int, *, value: float = 0.0, size: int = 4, **changes: Any) -> Snapshot:
    """The state of a run at a step, with arrays that hold `value`."""
    array = HostTensor("float32", np.full(size, value, np.float32))
    return Snapshot({"weight": array}, {"carry.steps": array, "random.key": array}, record(step, **changes))


def write_step(checkpoint_path: Path, step: int, **changes: Any) -> Path:
    """Write a checkpoint; returns its step folder."""
    return write_checkpoint(snapshot(step, **changes), checkpoint_path)


def names(folder: Path) -> list[str]:
    """Everything in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
