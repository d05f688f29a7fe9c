"""Predictions on disk: one .npy file a key, in data set order and without padding rows, written batch by batch."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from types import TracebackType

import mlx.core as mx
import numpy as np

from dataset.npy_stream import NpyStream
from dataset.puzzle_dataset import Batch

# How each key is stored. Labels are -100 where a token is not scored; tokens of the usual vocabularies fit into a byte.
_DTYPES = {
    "inputs": np.uint8,
    "labels": np.int16,
    "puzzle_identifiers": np.int32,
    "preds": np.uint8,
    "logits": np.float32,
    "q_halt_logits": np.float32,
    "q_continue_logits": np.float32,
    "step_preds": np.uint8,
    "step_q_halt_logits": np.float32,
    "step_q_continue_logits": np.float32,
}
STEP_PREDS = "step_preds"
# What this key stores: the named outputs after every outer step instead of after the last, rows `[steps, …]`.
_STEP_FILES = {
    STEP_PREDS: "preds",
    "step_q_halt_logits": "q_halt_logits",
    "step_q_continue_logits": "q_continue_logits",
}


def to_numpy(array: mx.array | np.ndarray) -> np.ndarray:
    """A numpy copy; bfloat16, which numpy lacks, becomes float32."""
    if isinstance(array, np.ndarray):
        return array
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def predictions_folder(checkpoint_path: Path, step: int, rank: int = 0) -> Path:
    """Where the predictions of a step go: `step_<N>_all_preds.<rank>` beside the step folder."""
    return checkpoint_path / f"step_{step}_all_preds.{rank}"


def remove_surplus(checkpoint_path: Path, step: int, num_ranks: int) -> None:
    """Remove the predictions for a step that an earlier evaluation with more ranks has left, which whoever reads
    `step_<N>_all_preds.*` would take for part of the new ones."""
    for folder in checkpoint_path.glob(f"step_{step}_all_preds.*"):
        rank = folder.suffix.removeprefix(".")
        if rank.isdigit() and int(rank) >= num_ranks:
            shutil.rmtree(folder, ignore_errors=True)


class PredictionWriter:
    """Context manager that fills `<folder>/<key>.npy` with one row for each example.

    The files grow under another name; the folder appears when the block ends well, and replaces an older one.

    Args:
        folder: the folder to make.
        keys: any of `inputs`, `labels`, `puzzle_identifiers`, `preds`, `logits`, `q_halt_logits`,
            `q_continue_logits`; and `step_preds`, which brings `step_q_halt_logits` and `step_q_continue_logits` along.
        vocab_size: number of tokens; above 256, tokens are stored as int32.
    """

    def __init__(self, folder: Path, keys: Collection[str], vocab_size: int):
        self.folder = folder
        self.keys = list(dict.fromkeys(keys))
        self._steps: dict[str, list[np.ndarray]] = {key: [] for key in _STEP_FILES}  # of the batch being worked on
        self._dtypes = dict(_DTYPES)
        if vocab_size > np.iinfo(np.uint8).max + 1:
            self._dtypes |= dict.fromkeys(("inputs", "labels", "preds", "step_preds"), np.int32)
        self._partial = folder.with_name(f".{folder.name}.partial")
        self._files: dict[str, NpyStream] = {}

    def __enter__(self) -> PredictionWriter:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        return self

    def write_step(self, outputs: dict[str, mx.array]) -> None:
        """Keep what a batch's film needs of an outer step; call it after each, before `write`. Else nothing is done."""
        if STEP_PREDS in self.keys:
            for key, output in _STEP_FILES.items():
                self._steps[key].append(to_numpy(outputs[output]).astype(self._dtypes[key]))

    def write(self, batch: Batch, outputs: dict[str, mx.array] | dict[str, np.ndarray]) -> None:
        """Append the real rows of a batch: what the data set provides from `batch`, the rest from `outputs`."""
        for key in self.keys:
            if key == STEP_PREDS:
                continue
            array = to_numpy(outputs[key]) if key in outputs else batch.arrays[key]
            self._append(key, array[: batch.num_examples])
        if STEP_PREDS in self.keys:
            for key, steps in self._steps.items():
                self._append(key, np.stack(steps, axis=1)[: batch.num_examples])
                steps.clear()

    def _append(self, key: str, rows: np.ndarray) -> None:
        if key not in self._files:
            self._files[key] = NpyStream(self._partial / f"{key}.npy", rows.shape[1:], self._dtypes[key])
        self._files[key].append(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in self._files.values():
                if kind is None:
                    file.finish()
                else:
                    file.file.close()
            if kind is None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self._partial.replace(self.folder)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
