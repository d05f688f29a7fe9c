"""ARC tasks from folders of JSON files. Every cell is checked; errors name the file and the pair."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import expand_user
from dataset.arc_grids import NUM_COLOURS, SIDE, parse_augmentation_name
from dataset.metadata import BLANK_IDENTIFIER

EVALUATION = "evaluation"  # the sub-folder whose test pairs are held back for the test split
SUBMODULES = "raw-data"  # the folder of the git submodules, dataset/raw-data/

# Input and output: colours, uint8 [rows, cols] each; an output that is not known is [0, 0]
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Task:
    """An ARC task.

    Attributes:
        task_id: the file's name without .json.
        train: the demonstration pairs.
        test: the pairs to be solved.
        is_evaluation: whether `test` is held back for the test split.
    """

    task_id: str
    train: list[Pair]
    test: list[Pair]
    is_evaluation: bool

    @property
    def has_answers(self) -> bool:
        """Whether the outputs of all test pairs are known."""
        return all(output.size for _, output in self.test)

    def raw(self) -> dict[str, list[dict[str, list[list[int]]]]]:
        """Return the task as in the JSON files of ARC: a pair whose output is not known has none."""
        return {
            kind: [
                {side: grid.tolist() for side, grid in zip(("input", "output"), pair, strict=True) if grid.size}
                for pair in pairs
            ]
            for kind, pairs in (("train", self.train), ("test", self.test))
        }


def read_tasks(dataset_dirs: Sequence[str], *, allow_unsolved: bool = False) -> list[Task]:
    """Read all tasks in the sub-folders of some folders.

    Args:
        dataset_dirs: the folders.
        allow_unsolved: whether test pairs may lack their output.

    Returns:
        The tasks in the order of the folders, then sorted by sub-folder and file.

    Raises:
        UserError: for a missing or empty folder, an invalid task, or two tasks of one name.
    """
    tasks: list[Task] = []
    path_of: dict[str, Path] = {}
    for directory in dataset_dirs:
        before = len(tasks)
        folder = expand_user(directory)
        for subfolder in _sorted_by_name(folder.iterdir() if folder.is_dir() else ()):
            if not subfolder.is_dir():
                continue
            for path in task_files(subfolder):
                task = read_task(path, is_evaluation=subfolder.name == EVALUATION, allow_unsolved=allow_unsolved)
                if task.task_id in path_of:
                    raise UserError(
                        f"{path}: there is a task of that name already, {path_of[task.task_id]}: "
                        "choose --dataset-dirs that hold each task once"
                    )
                path_of[task.task_id] = path
                tasks.append(task)
        if len(tasks) == before:
            raise UserError(_nothing_there(folder))
    return tasks


def task_files(folder: Path) -> list[Path]:
    """List the .json files of a folder, sorted by name."""
    return _sorted_by_name(folder.glob("*.json"))


def _sorted_by_name(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by name, without hidden files, such as the ._* that macOS leaves on other file systems."""
    return sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: path.name)


def _nothing_there(folder: Path) -> str:
    if SUBMODULES in folder.parts:
        return (
            f"{folder} has no tasks: the git submodules haven't been fetched; "
            "run `git submodule update --init --recursive` in the repository's root"
        )
    found = "has no tasks" if folder.is_dir() else "is a file" if folder.exists() else "is missing"
    return f"{folder} {found}: expected a folder with sub-folders of .json files, such as training and {EVALUATION}"


def read_task(path: Path, *, is_evaluation: bool, allow_unsolved: bool = False) -> Task:
    """Read one task from its JSON file.

    Args:
        path: the file.
        is_evaluation: whether its test pairs are held back for the test split.
        allow_unsolved: as in `parse_task`.

    Raises:
        UserError: if it isn't a valid task; the message names the file and the pair.
    """
    raw = parse_json(str(path), path.read_bytes())
    task_id = path.stem
    if task_id == BLANK_IDENTIFIER or parse_augmentation_name(task_id)[0] != task_id:
        raise UserError(f"{path}: {task_id!r} is a name that data sets reserve for other puzzles: rename the file")
    return parse_task(str(path), task_id, raw, is_evaluation=is_evaluation, allow_unsolved=allow_unsolved)


def parse_json(where: str, text: str | bytes) -> object:
    """Parse JSON, with or without a byte order mark.

    Args:
        where: the file, for messages.
        text: its content.

    Raises:
        UserError: if it isn't JSON.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested beyond Python's depth
        raise UserError(f"{where} is not valid JSON: {error}") from error


def parse_task(where: str, task_id: str, raw: object, *, is_evaluation: bool, allow_unsolved: bool = False) -> Task:
    """Make a task from its raw form.

    Args:
        where: the file, and the task if there are several in it, for messages.
        task_id: the task's name.
        raw: the parsed JSON.
        is_evaluation: whether its test pairs are held back for the test split.
        allow_unsolved: whether test pairs may lack their output. Those of a task where one does are always held back.

    Raises:
        UserError: if it isn't a valid task; the message names `where` and the pair.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{where} holds {_kind_of(raw)}, expected an object with 'train' and 'test'")
    train = _parse_pairs(where, raw, "train")
    task = Task(task_id, train, _parse_pairs(where, raw, "test", allow_unsolved), is_evaluation)
    return task if task.has_answers else replace(task, is_evaluation=True)


def _parse_pairs(origin: str, raw: dict[str, Any], kind: str, allow_unsolved: bool = False) -> list[Pair]:
    pairs = raw.get(kind)
    if not isinstance(pairs, list) or not pairs:
        found = f"no {kind!r}" if kind not in raw else f"{_kind_of(pairs)} as {kind!r}"
        raise UserError(f"{origin} has {found}, expected a list of at least one pair")
    parsed = []
    for number, pair in enumerate(pairs, 1):
        where = f"{origin}: {kind} pair {number}"
        if not isinstance(pair, dict):
            raise UserError(f"{where} is {_kind_of(pair)}, expected an object with 'input' and 'output'")
        is_unsolved = allow_unsolved and "output" not in pair
        for side in ("input",) if is_unsolved else ("input", "output"):
            if side not in pair:
                remedy = "--allow-unsolved builds tasks without answers, to submit them"
                expected = remedy if (kind, side) == ("test", "output") else "expected 'input' and 'output'"
                raise UserError(f"{where} has no {side!r}: {expected}")
        output = np.zeros((0, 0), np.uint8) if is_unsolved else _parse_grid(where, pair, "output")
        parsed.append((_parse_grid(where, pair, "input"), output))
    return parsed


def _parse_grid(where: str, pair: dict[str, Any], side: str) -> np.ndarray:
    rows = pair[side]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise UserError(f"{where}: {side} is not a list of rows, each a list of colours")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{where}: row {number} of the {side} has {len(row)} cells, expected {len(rows[0])} as in row 1"
            )
        for cell in row:
            if type(cell) is not int or not 0 <= cell < NUM_COLOURS:
                raise UserError(
                    f"{where}: row {number} of the {side} has colour {json.dumps(cell)[:40]}, "
                    f"expected a whole number from 0 to {NUM_COLOURS - 1}"
                )
    height, width = len(rows), len(rows[0]) if rows else 0
    if not (1 <= height <= SIDE and 1 <= width <= SIDE):
        raise UserError(f"{where}: {side} has {height}x{width} cells, expected 1x1 to {SIDE}x{SIDE}")
    return np.array(rows, np.uint8)


def _kind_of(value: object) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else json.dumps(value)[:40]
