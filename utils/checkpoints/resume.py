"""Resuming: finds and verifies the checkpoint that `resume` names, and compares configuration and data with its run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import UserError, printable, shown_name
from dataset.metadata import PuzzleDatasetMetadata
from utils.checkpoints.record import (
    TRAINING_FILE,
    WEIGHTS_FILE,
    CheckpointRecord,
    DamagedCheckpointError,
    Progress,
    current_versions,
    step_folders,
    step_of,
    verify,
)
from utils.checkpoints.run_folder import set_aside
from utils.checkpoints.safetensors_file import read_safetensors
from utils.checkpoints.weights import load_weights, share_weights
from utils.config import CONFIG_FILE, ArchConfig, PretrainConfig, parse_pretrain_config, read_saved_config, with_names
from utils.train.metrics import TrainMetrics
from utils.train.state import TrainState

# Keys that the checkpoint's arrays depend on, as on those of arch
_FIXED = {"global_batch_size", "seed", "optimizer.name", "ema", "freeze_weights"}
# Keys of where a run begins and its folder, on which no number depends
_FREE = {"resume", "load_weights", "load_puzzle_emb", "checkpoint_path"}
_SHOWN_LENGTH = 200  # of a value that has changed


@dataclass(frozen=True)
class ResumePoint:
    """An undamaged checkpoint to continue from.

    Attributes:
        folder: its step folder.
        record: its record.
        in_the_way: later step folders to rename before the run goes on, each with the reason, `damaged` or
            `superseded`.
    """

    folder: Path
    record: CheckpointRecord
    in_the_way: tuple[tuple[Path, str], ...] = ()


def with_saved_names(config: PretrainConfig) -> PretrainConfig:
    """Fill in what a configuration with `resume` leaves open (folder, names, `arch.forward_dtype`) from the run's own.

    Raises:
        UserError: if `resume` names no step folder, or the run's folder is not given with `resume=auto`.
    """
    if config.resume is None:
        return config
    path = _run_folder(config)
    if not (path / CONFIG_FILE).is_file():  # nothing there yet
        return config.model_copy(update={"checkpoint_path": str(path)})
    saved = read_saved_config(path)
    arch = config.arch.model_dump()
    if arch.get("forward_dtype") is None:
        arch["forward_dtype"] = saved.arch.model_dump().get("forward_dtype")
    return config.model_copy(
        update={
            "project_name": config.project_name or saved.project_name,
            "run_name": config.run_name or saved.run_name,
            "checkpoint_path": str(path),
            "arch": ArchConfig.model_validate(arch),
        }
    )


def _run_folder(config: PretrainConfig) -> Path:
    if config.resume == "auto":
        if config.checkpoint_path is None and config.run_name is None:
            raise UserError("resume=auto needs checkpoint_path=<the run's folder>, as the run was started")
        return with_names(config).run_folder
    folder = Path(str(config.resume))
    if not folder.is_dir():
        raise UserError(f"resume = {config.resume!r} is neither auto nor a step folder")
    step_of(folder)
    if config.checkpoint_path is not None and Path(config.checkpoint_path).resolve() != folder.parent.resolve():
        raise UserError(
            f"resume={config.resume} continues in {folder.parent}, but checkpoint_path is {config.checkpoint_path}; "
            "leave it out, or start a new run there with load_weights instead of resume"
        )
    return folder.parent


def find_resume_point(config: PretrainConfig) -> ResumePoint | None:
    """Find and verify the checkpoint that `resume` names. Nothing is changed on the disk.

    `resume=auto` takes the newest undamaged one, and warns of later ones that are damaged.

    Returns:
        The checkpoint; None without `resume`, or if `resume=auto` finds no step folder.

    Raises:
        UserError: if the checkpoint is damaged, or with `resume=auto` all are.
    """
    if config.resume is None:
        return None
    if config.resume != "auto":
        folder = Path(config.resume)
        record = verify(folder)
        later = (other for other in step_folders(folder.parent) if step_of(other) > record.step)
        return ResumePoint(folder, record, tuple((other, "superseded") for other in later))

    path = config.run_folder
    damaged: list[Path] = []
    for folder in step_folders(path):
        try:
            return ResumePoint(folder, verify(folder), tuple((other, "damaged") for other in damaged))
        except DamagedCheckpointError as error:
            tqdm.write(f"warning: {error}; trying the checkpoint before it", file=sys.stderr)
            damaged.append(folder)
    if damaged:
        names = ", ".join(folder.name for folder in damaged)
        raise UserError(
            f"all checkpoints in {path} are damaged ({names}); remove them to start anew, or start another run from "
            "the weights of one with load_weights"
        )
    return None


def make_way(point: ResumePoint) -> None:
    """Rename the step folders in the way of a run that goes on to `step_<N>.<why>`, and print each."""
    for folder, why in point.in_the_way:
        tqdm.write(f"{folder} is renamed to {set_aside(folder, why).name}")


def check_same_run(config: PretrainConfig, data: dict[str, str], point: ResumePoint) -> list[str]:
    """Compare a configuration and the fingerprints of the data set with those of a checkpoint.

    Args:
        config: the configuration, with names and dtype filled in.
        data: fingerprints of the splits.
        point: the checkpoint to continue from.

    Returns:
        The harmless changes, of the configuration and of versions, each as `key: old → new`.

    Raises:
        UserError: if keys or data differ that the checkpoint's arrays depend on; it names them.
    """
    old = _flat(parse_pretrain_config(point.record.config, str(point.folder)).model_dump())
    new = _flat(config.model_dump())
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and key not in _FREE]
    refused = [_change(key, old, new) for key in changed if key in _FIXED or key.startswith("arch.")]
    for split, fingerprint in point.record.data.items():
        if data[split] != fingerprint:
            refused.append(f"the {split} split of the data set ({_change('data_path', old, new)})")
    if refused:
        fitting = "if they fit the changed model, " if any(change.startswith("arch.") for change in refused) else ""
        raise UserError(
            f"{point.folder} can't be continued, because this differs: {'; '.join(refused)}; type the run's whole "
            f"command again, with resume added, or start a new run from its weights, {fitting}with "
            f"load_weights={point.folder}"
        )
    then, now = point.record.versions, current_versions()
    differing = [name for name in then if then[name] != now.get(name)]
    return [_change(key, old, new) for key in changed] + [_change(name, then, now) for name in differing]


def changed_order(point: ResumePoint, metadata: PuzzleDatasetMetadata) -> list[str]:
    """List what differs, to the next evaluation, in the batches of a run that version 0.1 began.

    Args:
        point: the checkpoint to be continued.
        metadata: of the train split.
    """
    by_this_version = "hrm-mlx" in point.record.versions  # recorded since 0.2
    if by_this_version or not point.record.progress.batches or metadata.mean_puzzle_examples == 1:
        return []
    return ["the order of the examples within a puzzle, which now is random; up to the next evaluation"]


def progress_from(point: ResumePoint, config: PretrainConfig) -> Progress:
    """Return the position from which a run goes on.

    An iteration under way keeps its length; changed intervals and bounds apply after it.
    """
    progress = point.record.progress.model_copy(deep=True)
    saved = parse_pretrain_config(point.record.config, str(point.folder))
    if config.stop_when != saved.stop_when:
        progress.stopped = None
    if not progress.batches:
        progress.iteration_epochs = max(1, min(config.epochs_per_iteration, config.epochs - progress.epochs_done))
    return progress


def restore(point: ResumePoint, state: TrainState, metrics: TrainMetrics) -> None:
    """Restore the arrays and metrics of a checkpoint. Only rank 0 reads it; the others get the arrays from it."""
    if state.ranks.first:
        load_weights(state.head, read_safetensors(point.folder / WEIGHTS_FILE), str(point.folder))
    share_weights(state.head, state.ranks)
    arrays = read_safetensors(point.folder / TRAINING_FILE) if state.ranks.first else {}
    state.restore(point.record.step, arrays, str(point.folder))
    metrics.restore(point.record.train_metrics)


def _change(key: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    before, now = (printable(values.get(key), _SHOWN_LENGTH) for values in (old, new))
    return f"{shown_name(key)}: {before} → {now}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join nested keys by dots, as on the command line."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
