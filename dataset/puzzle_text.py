"""Puzzles that a user types, pipes in or hands over as a file, as the tokens of a data set.

A puzzle is a line of all its cells, or a block of lines, one for each row. What is wrong with one ends in one line that
names the puzzle.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from common.errors import UserError, printable, shown_name
from common.files import expand_user
from dataset.arc_tasks import Task, parse_json, parse_task, task_files
from dataset.csv_puzzles import read_csv
from dataset.metadata import PuzzleDatasetMetadata
from dataset.notations import PAIRS_COLUMNS, Notation, NumberedLine, Row, lines_of, notation_of

STDIN = "-"
SUFFIXES = (".txt", ".csv", ".json", ".jsonl")

_LONGEST_HEADER = 1 << 16


@dataclass(frozen=True)
class Puzzle:
    """A puzzle that was given to a model.

    Attributes:
        name: what messages call it, such as "puzzle 3", or file and line: "puzzles.csv:7".
        inputs: tokens int32 `[s]`.
        labels: tokens int32 `[s]` of the answer; None where only the puzzle was given.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray | None


def read_puzzles(given: str, metadata: PuzzleDatasetMetadata, stdin: TextIO) -> list[Puzzle]:
    r"""Read Sudoku, mazes, or puzzles of a kind whose `vocabulary` is known.

    Sudoku: `.`, `0` and `_` are blanks, letters the digits from 10 on; white space and frames are ignored. Mazes: the
    characters of `mazes.ALPHABET` but the path's, and `.` as another open cell; each space counts. A vocabulary: its
    symbols side by side if each is one character, otherwise with white space between them; or a JSON list of them, or
    of rows of them, where the empty text is padding.

    Args:
        given: the puzzles themselves, where `\n` stands for the end of a line as well; or a .txt file with one on each
            line, or with blocks of rows and an empty line between them; or a .csv file in its builder's format, or a
            .jsonl file of one's own puzzles, where `answer`, or `output`, may be missing; or `-` for `stdin`, with what
            a .txt file has.
        metadata: of the data set that the model was trained on.
        stdin: the standard input.

    Returns:
        The puzzles in their order, at least one.

    Raises:
        UserError: for a missing file, text that is no puzzle of this kind and size, or a puzzle without a solution.
    """
    notation = notation_of(metadata)
    if given == STDIN:
        return _text_puzzles(_read(stdin), notation)
    path = _existing_path(given, notation.uses("/"))
    if path is None:
        return _text_puzzles(given if notation.uses("\\") else given.replace("\\n", "\n"), notation)
    if path.is_dir():
        raise UserError(f"{printable(path)} is a folder, which only ARC tasks are read from: give a .txt or .csv file")
    if path.suffix.lower() == ".csv":
        return list(_csv_puzzles(path, notation))
    if path.suffix.lower() == ".txt":
        with open(path, encoding="utf-8-sig") as file:
            return _text_puzzles(_read(file), notation, path)
    if path.suffix.lower() == ".jsonl" and notation.columns == PAIRS_COLUMNS:
        return list(_jsonl_puzzles(path, notation))
    raise UserError(f"{printable(path)} is neither a .txt nor a .csv file: give puzzles in one of these")


def read_arc_tasks(given: str, stdin: TextIO) -> list[Task]:
    """Read ARC tasks, whose test pairs may lack their output.

    Args:
        given: JSON of a task with `train` and `test`, or of an object with such a task for each id; or a .json file
            with one of these; or a folder of such files; or `-` for `stdin`, with JSON as well.
        stdin: the standard input.

    Returns:
        The tasks in their order, at least one. A task without an id of its own has its file's name, or "puzzle 1".

    Raises:
        UserError: for a missing file, or JSON that is no task; the message names file, task and pair.
    """
    if given == STDIN:
        return _tasks_in("standard input", "puzzle 1", _read(stdin))
    path = None if given.lstrip().startswith(("{", "[")) else _existing_path(given, False)
    if path is None:
        return _tasks_in("puzzle 1", "puzzle 1", given)
    if not path.is_dir() and path.suffix.lower() != ".json":
        raise UserError(f"{printable(path)} is no .json file: give ARC tasks as JSON")
    files = task_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{printable(path)} holds no .json files; expected ARC tasks, as in ARC-AGI/data/evaluation")
    tasks: dict[str, Task] = {}
    for file in files:
        with open(file, encoding="utf-8-sig") as text:
            for task in _tasks_in(str(file), file.stem, _read(text)):
                if task.task_id in tasks:
                    raise UserError(f"{file}: there is a task {shown_name(task.task_id)} already; expected each once")
                tasks[task.task_id] = task
    return list(tasks.values())


def _tasks_in(where: str, name: str, text: str) -> list[Task]:
    raw = parse_json(where, text)
    if isinstance(raw, dict) and raw and all(isinstance(task, dict) for task in raw.values()):
        named = {task_id: (f"{where}: task {shown_name(task_id)}", task) for task_id, task in raw.items()}
    else:
        named = {name: (where, raw)}
    return [
        parse_task(task_where, task_id, task, is_evaluation=True, allow_unsolved=True)
        for task_id, (task_where, task) in named.items()
    ]


# ---------------------------------------------------------------------------------------------------- files and lines


def _read(file: TextIO) -> str:
    try:
        return file.read()
    except UnicodeDecodeError as error:
        name = getattr(file, "name", "standard input")
        raise UserError(f"{printable(name)}: not UTF-8 text: {error.reason}") from error


def _existing_path(given: str, is_slash_a_symbol: bool) -> Path | None:
    """Return the path that `given` is, or None for text; a path to nothing is refused where text can't look like it."""
    try:
        path = expand_user(given)
        if given.strip() and path.exists():
            return path
    except (OSError, ValueError, UserError):  # too long for a path, a zero byte in it, or `~` that is no home
        path = Path(given)
    is_line = "\n" not in given and "\\n" not in given
    if is_line and (path.suffix.lower() in SUFFIXES or ("/" in given and not is_slash_a_symbol)):
        raise UserError(f"{printable(given, 200)} is missing: give a file, the puzzle itself, or - for standard input")
    return None


def _text_puzzles(text: str, notation: Notation, path: Path | None = None) -> list[Puzzle]:
    """Read all puzzles of a text. They are named by file and line, or by their number if they are from no file."""
    puzzles: list[Puzzle] = []
    for line, rows in _boards(text, notation):
        name = f"puzzle {len(puzzles) + 1}" if path is None else f"{printable(path)}:{line}"
        puzzles.append(Puzzle(name, notation.question(name, rows), None))
    if not puzzles:
        raise UserError(f"{'the text' if path is None else printable(path)} holds no puzzle, expected {notation.size}")
    return puzzles


def _csv_puzzles(path: Path, notation: Notation) -> Iterator[Puzzle]:
    found = False
    asked, told = notation.columns
    for chunk in read_csv(path, [asked, told] if _has_column(path, told) else [asked]):
        questions = chunk.columns[asked]
        answers = chunk.columns.get(told, [""] * len(questions))
        for line, question, answer in zip(chunk.lines, questions, answers, strict=True):
            found = True
            name = f"{printable(path)}:{line}"
            inputs = notation.question(name, notation.rows_of(question))
            labels = notation.answer(f"{name}: the answer", inputs, notation.rows_of(answer)) if answer else None
            yield Puzzle(name, inputs, labels)
    if not found:
        raise UserError(f"{printable(path)} holds no puzzle, expected {notation.size}")


def _jsonl_puzzles(path: Path, notation: Notation) -> Iterator[Puzzle]:
    asked, told = notation.columns
    with open(path, encoding="utf-8-sig") as file:
        lines = [(number, line) for number, line in enumerate(lines_of(_read(file)), 1) if line.strip()]
    if not lines:
        raise UserError(f"{printable(path)} holds no puzzle, expected {notation.size}")
    for number, line in lines:
        name = f"{printable(path)}:{number}"
        values = parse_json(name, line)
        if not isinstance(values, dict) or asked not in values:
            raise UserError(f"{name} is no object with {asked!r}")
        boards = {key: values[key] for key in (asked, told) if key in values}
        texts = {key: board if isinstance(board, str) else json.dumps(board) for key, board in boards.items()}
        inputs = notation.question(name, notation.rows_of(texts[asked]))
        labels = None
        if told in texts:
            labels = notation.answer(f"{name}: the answer", inputs, notation.rows_of(texts[told]))
        yield Puzzle(name, inputs, labels)


def _has_column(path: Path, name: str) -> bool:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:  # `read_csv` tells of such errors
        header = file.readline(_LONGEST_HEADER)
    try:
        return name in next(csv.reader([header]), [])
    except csv.Error:
        return False


def _boards(text: str, notation: Notation) -> Iterator[tuple[int, list[Row]]]:
    """Find the puzzles of a text: the number of the line where each begins, and its rows."""
    block: list[NumberedLine] = []
    for number, line in enumerate([*lines_of(text), ""], 1):  # an empty line ends the last block
        if notation.is_empty(line):
            if block:
                yield from notation.boards(block)
            block = []
        elif not notation.is_comment(line):
            block.append((number, line))
