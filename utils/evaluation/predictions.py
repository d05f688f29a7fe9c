"""Predictions on disk: one .npy file for each key, in data set order and without padding rows."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import mlx.core as mx
import numpy as np

from common.files import replacing
from dataset.npy_stream import NpyStream
from dataset.puzzle_dataset import Batch

# The dtype of each file. Labels are -100 where a token is not scored; tokens of the usual vocabularies fit into a byte.
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
    "step_halted": np.bool_,
    "sample_preds": np.uint8,
    "sample_q_halt_logits": np.float32,
    "sample_movement": np.float32,
    "sample_steps": np.int32,
}
STEP_PREDS = "step_preds"
# The files of this key: these outputs after every outer step instead of after the last, rows `[steps, …]`
_STEP_FILES = {
    STEP_PREDS: "preds",
    "step_q_halt_logits": "q_halt_logits",
    "step_q_continue_logits": "q_continue_logits",
    "step_halted": "halts",
}

SAMPLES = "samples"
# The files of this key, rows `[samples, …]`
_SAMPLE_FILES = ("sample_preds", "sample_q_halt_logits", "sample_movement", "sample_steps")


def to_numpy(array: mx.array | np.ndarray) -> np.ndarray:
    """Copy an array to numpy; bfloat16, which numpy lacks, becomes float32."""
    if isinstance(array, np.ndarray):
        return array
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)


def predictions_folder(checkpoint_path: Path, step: int, rank: int = 0) -> Path:
    """Return the folder for the predictions of a step: `step_<N>_all_preds.<rank>` beside the step folder."""
    return checkpoint_path / f"step_{step}_all_preds.{rank}"


def remove_surplus(checkpoint_path: Path, step: int, num_ranks: int) -> None:
    """Remove the predictions of a step that an earlier evaluation with more ranks has left.

    Readers of `step_<N>_all_preds.*` would take them for part of the new ones.

    Args:
        checkpoint_path: the run's folder.
        step: the step.
        num_ranks: ranks of the new evaluation.
    """
    for folder in checkpoint_path.glob(f"step_{step}_all_preds.*"):
        rank = folder.suffix.removeprefix(".")
        if rank.isdigit() and int(rank) >= num_ranks:
            shutil.rmtree(folder, ignore_errors=True)


class PredictionWriter:
    """Context manager that fills `<folder>/<key>.npy` with one row for each example.

    The folder has another name while it is written. It appears when the block ends without an exception, and replaces
    an older one. A key that neither the data set nor the model provides, such as Q-continue of models without one, gets
    no file.

    Args:
        folder: the folder to make.
        keys: any of `inputs`, `labels`, `puzzle_identifiers`, `preds`, `logits`, `q_halt_logits`,
            `q_continue_logits`; and `step_preds`, which adds `step_q_halt_logits`, `step_q_continue_logits` and
            `step_halted`: whether the model's own rule halts the row there, bool `[examples, steps]`; and `samples`,
            which adds `sample_preds` and so on: of every sample that counted, zeros for the others.
        vocab_size: number of tokens; above 256, tokens are stored as int32.
    """

    def __init__(self, folder: Path, keys: Collection[str], vocab_size: int):
        self.folder = folder
        self.keys = list(dict.fromkeys(keys))
        self._steps: dict[str, list[np.ndarray]] = {}  # of the batch being worked on
        self._dtypes = dict(_DTYPES)
        if vocab_size > np.iinfo(np.uint8).max + 1:
            self._dtypes |= dict.fromkeys(("inputs", "labels", "preds", "step_preds", "sample_preds"), np.int32)
        self._files: dict[str, NpyStream] = {}

    def __enter__(self) -> PredictionWriter:
        self._exits = ExitStack()
        self._partial = self._exits.enter_context(replacing(self.folder))
        self._partial.mkdir(parents=True)
        self._exits.push(self._close_files)  # before the folder gets its name
        return self

    def write_step(self, outputs: dict[str, mx.array]) -> None:
        """Keep the outputs of an outer step for `step_preds`; called after each, before `write`.

        Args:
            outputs: of the model, with `preds`, arrays `[b, …]`.
        """
        if STEP_PREDS in self.keys:
            for key, output in _STEP_FILES.items():
                if output in outputs:
                    step: np.ndarray = to_numpy(outputs[output]).astype(self._dtypes[key])
                    self._steps.setdefault(key, []).append(step)

    def write(self, batch: Batch, outputs: dict[str, mx.array] | dict[str, np.ndarray]) -> None:
        """Append the real rows of a batch.

        Args:
            batch: of the data set.
            outputs: of the model after the last outer step, with `preds`, arrays `[b, …]`.
        """
        keys = [*self.keys, *(_SAMPLE_FILES if SAMPLES in self.keys else ())]
        for key in keys:
            array = outputs[key] if key in outputs else batch.arrays.get(key)
            if array is not None:
                self._append(key, to_numpy(array)[: batch.num_examples])
        for key, steps in self._steps.items():
            self._append(key, np.stack(steps, axis=1)[: batch.num_examples])
            steps.clear()

    def _append(self, key: str, rows: np.ndarray) -> None:
        if key not in self._files:
            self._files[key] = NpyStream(self._partial / f"{key}.npy", rows.shape[1:], self._dtypes[key])
        self._files[key].append(rows)

    def _close_files(self, kind: type[BaseException] | None, *_: object) -> None:
        for file in self._files.values():
            if kind is None:
                file.finish()
            else:
                file.file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)
