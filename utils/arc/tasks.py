"""What predictions are scored on: the puzzle names of an ARC data set, and the tasks behind its test split."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import expand_user
from dataset.arc_grids import (
    FIRST_COLOUR,
    SIDE,
    VOCAB_SIZE,
    is_arc,
    parse_augmentation_name,
    restore_grid,
    tokens_to_grid,
)
from dataset.arc_tasks import Pair, Task, parse_task, read_task, task_files
from dataset.dataset_files import open_set, read_metadata, read_rows

PADDING_IDENTIFIER = 0
TEST_PUZZLES = "test_puzzles.json"


def evaluation_tasks(
    data_path: Path, names: list[str], test_puzzles: str | Path | None = None
) -> tuple[dict[str, Task], str]:
    """Find the tasks that predictions of a data set are scored on.

    They are read from `test_puzzles`, by default from the data set's `test_puzzles.json`. In a data set without one,
    such as the PyTorch code builds, they are what its two splits hold.

    Args:
        data_path: the data set.
        names: the content of its `identifiers.json`.
        test_puzzles: a file like `test_puzzles.json`, or a folder of raw tasks.

    Returns:
        The tasks by id, and where they are from, for messages.

    Raises:
        UserError: if there are none, or a task is none; file, task and pair are named.
    """
    if test_puzzles is not None:
        return read_evaluation_tasks(test_puzzles), str(test_puzzles)
    path = data_path / TEST_PUZZLES
    if path.exists():
        return read_evaluation_tasks(path), TEST_PUZZLES
    if not (data_path / "test" / "dataset.json").is_file():
        raise _missing(path)
    return _tasks_of_splits(data_path, names), "the test split"


def read_evaluation_tasks(path: str | Path) -> dict[str, Task]:
    """Read tasks from a `test_puzzles.json`, or from a folder of raw tasks.

    Args:
        path: the file or folder.

    Returns:
        The tasks by id.

    Raises:
        UserError: if there are none, or a task is none; file, task and pair are named.
    """
    path = expand_user(path)
    if not path.exists():
        raise UserError(f"{path} is missing; expected a file like {TEST_PUZZLES}, or a folder of ARC tasks")
    if path.is_dir():
        found = [read_task(file, is_evaluation=True, allow_unsolved=True) for file in task_files(path)]
        if not found:
            raise UserError(f"{path} holds no .json files; expected ARC tasks, as in ARC-AGI/data/evaluation")
        return {task.task_id: task for task in found}
    tasks = _read_json(path)
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{path} holds no tasks; build the data set again with dataset/build_arc_dataset.py")
    return {
        task_id: parse_task(f"{path}: task {task_id}", task_id, raw, is_evaluation=True, allow_unsolved=True)
        for task_id, raw in tasks.items()
    }


def read_names(data_path: Path) -> list[str]:
    """Read the puzzle names of a data set, index = identifier.

    Raises:
        UserError: if `identifiers.json` is missing or no list of names.
    """
    path = data_path / "identifiers.json"
    names = _read_json(path)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} holds no list of puzzle names; build the data set again")
    return names


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _missing(path) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); build the data set again") from error


def _missing(path: Path) -> UserError:
    return UserError(f"{path} is missing; data_path must be an ARC data set made by dataset/build_arc_dataset.py")


# ---------------------------------------------------------------------------------------------------- from the arrays


def _tasks_of_splits(data_path: Path, names: list[str]) -> dict[str, Task]:
    """Restore the tasks of the test split, with their demonstrations from the train split."""
    metadata = read_metadata(data_path, "test")
    if not is_arc(metadata):
        raise UserError(f"{data_path} holds no ARC puzzles (kind {metadata.kind}): there is nothing to score")
    tests = _pairs_of_tasks(data_path, "test", names)
    if not tests:
        raise UserError(
            f"{data_path} has no {TEST_PUZZLES}, and identifiers.json names none of the puzzles in its test split; "
            "give their tasks as test_puzzles=<file or folder>"
        )
    demonstrations = _pairs_of_tasks(data_path, "train", names, tests)
    return {
        task_id: Task(task_id, demonstrations.get(task_id, []), pairs, is_evaluation=True)
        for task_id, pairs in tests.items()
    }


def _pairs_of_tasks(
    data_path: Path, split: str, names: list[str], wanted: Container[str] | None = None
) -> dict[str, list[Pair]]:
    """Restore the pairs of each task in a split, or of the wanted ones, from the first puzzle of its group."""
    metadata = read_metadata(data_path, split)
    if len(names) < metadata.num_puzzle_identifiers:
        raise UserError(
            f"{data_path / 'identifiers.json'} holds {len(names)} names, expected {metadata.num_puzzle_identifiers} as "
            f"in {split}/dataset.json: it belongs to another data set"
        )
    found: dict[str, list[Pair]] = {}
    for set_name in metadata.sets:
        data = open_set(data_path / split, set_name, metadata, check_tokens=False)
        for puzzle in data.group_indices[:-1].tolist():
            identifier = int(data.puzzle_identifiers[puzzle])
            task_id, k, colours = parse_augmentation_name(names[identifier])
            if identifier == PADDING_IDENTIFIER or task_id in found or (wanted is not None and task_id not in wanted):
                continue
            rows = np.arange(*data.puzzle_indices[puzzle : puzzle + 2])
            inputs, outputs = (
                [restore_grid(_grid(board), k, colours) for board in read_rows(array, rows)]
                for array in (data.inputs, data.labels)
            )
            found[task_id] = list(zip(inputs, outputs, strict=True))
    return found


def _grid(tokens: np.ndarray) -> np.ndarray:
    """Cut out the grid of a board, wherever it stands: colours uint8 `[rows, cols]`, `[0, 0]` if there is none."""
    board = tokens.reshape(SIDE, SIDE)
    rows, cols = np.nonzero((board >= FIRST_COLOUR) & (board < VOCAB_SIZE))
    if not len(rows):
        return np.zeros((0, 0), np.uint8)
    return tokens_to_grid(np.roll(board, (-rows.min(), -cols.min()), (0, 1)))
