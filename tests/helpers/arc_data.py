"""Small ARC tasks and predictions for them, as the builder and evaluate.py would write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.arc_grids import augmentation_name
from tests.helpers.arc_grids import augment_grid, grid_to_tokens

Grid = list[list[int]]
RIGHT, WRONG, WORSE = [[1, 2], [3, 4]], [[1, 2]], [[5]]


def task(*tests: tuple[Grid, Grid]) -> dict[str, Any]:
    """A raw task with the given test pairs."""
    return {
        "train": [{"input": [[0]], "output": [[1]]}],
        "test": [{"input": input_, "output": output} for input_, output in tests],
    }


@dataclass(frozen=True)
class Row:
    """One prediction: the name of the puzzle, and what stands on its boards."""

    name: str
    inputs: np.ndarray
    preds: np.ndarray
    q_halt: float = 0.0


def augmented(task_id: str, k: int, colours: Sequence[int], input_: Grid, answer: Grid, q_halt: float = 0.0) -> Row:
    """The prediction `answer` for a test input, made for an augmented copy of the task."""
    order = np.array(colours, np.uint8)
    inputs, preds = (grid_to_tokens(augment_grid(np.array(grid, np.uint8), k, order)) for grid in (input_, answer))
    return Row(augmentation_name(task_id, k, order), inputs, preds, q_halt)


def plain(task_id: str, input_: Grid, answer: Grid, q_halt: float = 0.0) -> Row:
    """The prediction `answer` for a test input of the task itself."""
    inputs, preds = (grid_to_tokens(np.array(grid, np.uint8)) for grid in (input_, answer))
    return Row(task_id, inputs, preds, q_halt)


def random_grid(rng: np.random.Generator, max_side: int = 6) -> Grid:
    return rng.integers(10, size=rng.integers(1, max_side + 1, 2)).tolist()


def random_augmentation(rng: np.random.Generator) -> tuple[int, list[int]]:
    return int(rng.integers(8)), [0, *(1 + rng.permutation(9)).tolist()]


class ArcFiles:
    """The part of an ARC data set that scoring reads, and prediction folders beside it.

    Identifiers are given to names in the order in which predictions mention them.
    """

    def __init__(self, root: Path, tasks: dict[str, Any]):
        self.root, self.data = root, root / "data"
        self.data.mkdir(parents=True)
        self.names = ["<blank>"]
        (self.data / "test_puzzles.json").write_text(json.dumps(tasks))

    def predict(self, rows: list[Row], rank: int = 0, step: int = 1) -> Path:
        """Write one rank's predictions."""
        self.names += [name for name in dict.fromkeys(row.name for row in rows) if name not in self.names]
        (self.data / "identifiers.json").write_text(json.dumps(self.names))
        folder = self.root / "run" / f"step_{step}_all_preds.{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.ndarray] = {
            "inputs": np.array([row.inputs for row in rows], np.uint8).reshape(-1, 900),
            "preds": np.array([row.preds for row in rows], np.uint8).reshape(-1, 900),
            "puzzle_identifiers": np.array([self.names.index(row.name) for row in rows], np.int32),
            "q_halt_logits": np.array([row.q_halt for row in rows], np.float32),
        }
        for key, array in arrays.items():
            np.save(folder / f"{key}.npy", array)
        return folder


def make_like_pytorch(data: Path) -> None:
    """Turn a data set of this builder into what the PyTorch code writes: no kind, no test_puzzles.json, int64."""
    (data / "test_puzzles.json").unlink()
    for split in ("train", "test"):
        file = data / split / "dataset.json"
        values = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in values.items() if key not in ("kind", "command")}))
        for kind in ("inputs", "labels"):
            path = data / split / f"all__{kind}.npy"
            np.save(path, np.load(path).astype(np.int64))


def predict_test_split(data: Path, folder: Path, wrong: float = 0.0) -> Path:
    """Write the labels of a data set's test split as predictions, a part of them replaced by another's."""
    rng = np.random.default_rng(0)
    arrays = {key: np.load(data / "test" / f"all__{key}.npy") for key in ("inputs", "labels", "puzzle_identifiers")}
    sizes = np.diff(np.load(data / "test" / "all__puzzle_indices.npy"))
    preds = arrays["labels"].copy()
    chosen = np.flatnonzero(rng.random(len(preds)) < wrong)
    preds[chosen] = rng.permutation(preds)[chosen]
    folder.mkdir(parents=True)
    np.save(folder / "inputs.npy", arrays["inputs"])
    np.save(folder / "preds.npy", preds)
    np.save(folder / "puzzle_identifiers.npy", np.repeat(arrays["puzzle_identifiers"], sizes))
    np.save(folder / "q_halt_logits.npy", rng.normal(size=len(preds)).astype(np.float32))
    return folder
