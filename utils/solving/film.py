"""The film of a solution: what the model would have answered after each outer step, in files that the viewer opens."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import IGNORE_LABEL_ID
from common.errors import UserError
from common.files import replacing
from dataset.metadata import BLANK_IDENTIFIER, SET_NAME
from utils.evaluation.predictions import predictions_folder
from utils.solving.solver import Solution

_TEST, _IDENTIFIERS = "test", "identifiers.json"


def check_film(folder: Path) -> None:
    """Raise UserError if a film can't be written to a folder, because something else is there."""
    ours = {_TEST, _IDENTIFIERS, predictions_folder(folder, 0).name}
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= ours):
        raise UserError(f"film = {str(folder)!r} is there already, and no film; name a new folder")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not os.access(above, os.W_OK):
        raise UserError(f"film = {str(folder)!r}: nothing can be written to {above}; name another folder")


def write_film(solutions: Sequence[Solution], folder: Path) -> None:
    """Write puzzles as the test split of a data set, and beside it predictions, as evaluate.py does with `step_preds`.

    Solutions of fewer steps stand still at the end. Where the answer was not given, one that the rules have verified is
    taken for it; others have none.

    Args:
        solutions: of one model, at least one.
        folder: to make; an earlier film there is replaced.
    """
    metadata = solutions[0].metadata
    n = len(solutions)
    tokens = np.uint8 if metadata.vocab_size <= np.iinfo(np.uint8).max + 1 else np.int32
    unknown = np.full(metadata.seq_len, IGNORE_LABEL_ID, np.int32)
    truths = [s.puzzle.labels if s.puzzle.labels is not None else s.preds if s.verified else unknown for s in solutions]
    labels = np.stack(truths).astype(np.int16 if tokens is np.uint8 else np.int32)
    longest = max(len(solution.film) for solution in solutions)
    steps = [[*s.film, *[s.film[-1]] * (longest - len(s.film))] for s in solutions]
    inputs = np.stack([solution.puzzle.inputs for solution in solutions]).astype(tokens)
    one_each = np.arange(n + 1, dtype=np.int32)
    of_test: dict[str, np.ndarray] = {
        "inputs": inputs,
        "labels": np.where(labels == IGNORE_LABEL_ID, metadata.ignore_label_id or 0, labels).astype(tokens),
        "puzzle_identifiers": np.zeros(n, np.int32),
        "puzzle_indices": one_each,
        "group_indices": one_each,
    }
    predictions: dict[str, np.ndarray] = {
        "inputs": inputs,
        "labels": labels,
        "puzzle_identifiers": np.zeros(n, np.int32),
        "preds": np.stack([solution.preds for solution in solutions]).astype(tokens),
        "q_halt_logits": np.array([film[-1][1] for film in steps], np.float32),
        "step_preds": np.array([[preds for preds, _, _ in film] for film in steps], tokens),
        "step_q_halt_logits": np.array([[q for _, q, _ in film] for film in steps], np.float32),
        "step_halted": np.array([[halts for _, _, halts in film] for film in steps], np.bool_),
    }
    sizes = metadata.model_copy(
        update={
            "blank_identifier_id": 0,
            "num_puzzle_identifiers": 1,
            "total_groups": n,
            "mean_puzzle_examples": 1.0,
            "sets": [SET_NAME],
            "fields": {},
            "command": None,
        }
    )
    with replacing(folder) as partial:
        test, saved = partial / _TEST, predictions_folder(partial, 0)
        for part in (test, saved):
            part.mkdir(parents=True)
        (partial / _IDENTIFIERS).write_text(json.dumps([BLANK_IDENTIFIER]), encoding="utf-8")
        (test / "dataset.json").write_text(sizes.model_dump_json(exclude_defaults=True), encoding="utf-8")
        for name, array in of_test.items():
            np.save(test / f"{SET_NAME}__{name}.npy", array)
        for name, array in predictions.items():
            np.save(saved / f"{name}.npy", array)
