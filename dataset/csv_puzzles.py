"""Data sets whose raw puzzles are CSV files, as pairs of equally long texts: Sudoku and mazes.

From a folder or the Hugging Face hub to rows, boards, a random choice of them, their symmetric copies and the writer.
A board is uint8 `[S]` of small values, one a cell; its token is value + 1, since 0 is padding.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import expand_user
from common.hub import HUB_ID, check_hub_variables, explain_hub_error, quiet_hub
from common.progress import progress_bar
from dataset.symmetries import Symmetries
from dataset.writer import DatasetWriter

CSV_CHUNK_ROWS = 50_000
WRITE_CELLS = 81 << 15  # cells augmented at a time, 32768 Sudoku: bounds memory
BAD_CHARACTER = 255


Boards = tuple[np.ndarray, np.ndarray]  # questions and answers, uint8 [p, S] each


def resolve_source(source: str, filename: str) -> Path:
    """Find one file of a source. From the Hugging Face hub it is downloaded, with progress, into the hub's cache.

    Args:
        source: a folder, or the id (`owner/name`) of a data set on the hub.
        filename: the file in it.

    Returns:
        The file's path on this machine.

    Raises:
        UserError: if it is missing or can't be downloaded.
    """
    folder = expand_user(source)
    if folder.is_dir():
        path = folder / filename
        if not path.is_file():
            raise UserError(f"{path} is missing: a source folder must hold train.csv and test.csv")
        return path
    if folder.exists():
        raise UserError(f"--source-repo {source} is a file: give the folder that holds train.csv and test.csv")
    if not HUB_ID.fullmatch(source):
        raise UserError(
            f"--source-repo {source!r} is neither an existing folder nor a Hugging Face id of the form owner/name"
        )
    check_hub_variables()
    from huggingface_hub import hf_hub_download  # slow to import, and not needed for a local folder

    try:
        with quiet_hub():
            return Path(hf_hub_download(source, filename, repo_type="dataset"))
    except Exception as error:  # its error classes differ between versions and HTTP libraries
        failure = explain_hub_error(error)
        raise UserError(
            f"no folder {source!r} here, and {filename} can't be downloaded from the Hugging Face data set {source}: "
            f"{failure.reason}; {failure.remedy}, or give --source-repo a folder with train.csv and test.csv"
        ) from error


@dataclass(frozen=True)
class CsvRows:
    """Some rows of a CSV file.

    Attributes:
        lines: the number of the line that each row ends on.
        columns: the texts of each column, by its name.
    """

    lines: list[int]
    columns: dict[str, list[str]]


def read_csv(path: Path, names: Sequence[str], *, chunk_rows: int = CSV_CHUNK_ROWS) -> Iterator[CsvRows]:
    """Stream the named columns of a CSV file with a header line, with a progress bar.

    Args:
        path: the file.
        names: of the columns.
        chunk_rows: rows to yield at a time.

    Yields:
        The rows, in chunks.

    Raises:
        UserError: if the file is empty, lacks a column, or a row is shorter than the header; the message names file and
            line.
    """
    with (
        open(path, "rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text,
        progress_bar(total=os.path.getsize(path), unit="B", unit_scale=True, desc=f"read {path.name}") as bar,
    ):
        reader = csv.reader(text)
        try:
            header = next(reader, None)
            if header is None:
                raise UserError(f"{path} is empty: expected a header line with the columns {', '.join(names)}")
            missing = [name for name in names if name not in header]
            if missing:
                raise UserError(f"{path}:1: no column {missing[0]!r}: found {', '.join(header)}")
            picks = [header.index(name) for name in names]
            while True:
                lines: list[int] = []
                rows: list[list[str]] = []
                for row in itertools.islice(reader, chunk_rows):
                    if len(row) == len(header):
                        lines.append(reader.line_num)
                        rows.append(row)
                    elif row:  # an empty line is harmless
                        raise UserError(
                            f"{path}:{reader.line_num}: {len(row)} fields, expected {len(header)} ({','.join(header)})"
                        )
                bar.update(raw.tell() - bar.n)
                if not rows:
                    return
                yield CsvRows(lines, {name: [row[i] for row in rows] for name, i in zip(names, picks, strict=True)})
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text after line {reader.line_num}: {error.reason}") from error
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def parse_boards(
    path: Path, rows: CsvRows, column: str, cells: int, values: Mapping[str, int], expected: str
) -> np.ndarray:
    """Parse the texts of a column as boards.

    Args:
        path: the file, for messages.
        rows: of the file.
        column: the column's name.
        cells: characters of a text.
        values: the value of each character.
        expected: these characters in words, for messages.

    Returns:
        uint8 `[rows, cells]`.

    Raises:
        UserError: for another length or character; the message names file, line and position.
    """
    texts = rows.columns[column]
    for line, text in zip(rows.lines, texts, strict=True):
        if len(text) != cells:
            raise UserError(f"{path}:{line}: {column} has {len(text)} characters, expected {cells}")
    value_of_byte: np.ndarray = np.full(256, BAD_CHARACTER, np.uint8)
    for character, value in values.items():
        value_of_byte[ord(character)] = value
    codes = np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8)
    boards = value_of_byte[codes].reshape(-1, cells)
    if (boards == BAD_CHARACTER).any():
        row, cell = (int(i) for i in np.argwhere(boards == BAD_CHARACTER)[0])
        raise UserError(
            f"{path}:{rows.lines[row]}: {column} has {texts[row][cell]!r} at position {cell + 1}, expected {expected}"
        )
    return boards


def choose(puzzles: Iterable[Boards], size: int | None, rng: np.random.Generator) -> list[Boards]:
    """Choose `size` puzzles at random, each as likely as the others; all if there are fewer or `size` is None.

    Every puzzle draws a random key and the smallest keys stay, so that only `size` puzzles are ever held.

    Args:
        puzzles: in chunks.
        size: how many.
        rng: the random generator.

    Returns:
        The chosen puzzles in source order.
    """
    if size is None:
        return list(puzzles)
    keys: np.ndarray = np.empty(0)
    kept: list[np.ndarray] = []
    for chunk in puzzles:
        keys = np.concatenate((keys, rng.random(len(chunk[0]))))
        kept = [np.concatenate(pair) for pair in zip(kept, chunk, strict=True)] if kept else list(chunk)
        if len(keys) > size:
            smallest = np.sort(np.argpartition(keys, size)[:size])
            keys, kept = keys[smallest], [boards[smallest] for boards in kept]
    return [(kept[0], kept[1])] if kept else []


def write_split(
    writer: DatasetWriter, split: str, puzzles: list[Boards], num_aug: int, draw: Callable[[int], Symmetries]
) -> None:
    """Augment and write puzzles: a group for each puzzle, of the puzzle itself and its `num_aug` copies.

    Args:
        writer: where they go.
        split: `train` or `test`.
        puzzles: in chunks.
        num_aug: copies of each puzzle.
        draw: returns, for a number n of puzzles, the n * num_aug symmetries that make their copies.
    """
    copies = 1 + num_aug
    step = max(1, WRITE_CELLS // (copies * writer.seq_len))
    total = sum(len(questions) for questions, _ in puzzles) * copies
    with progress_bar(total=total, unit=" examples", unit_scale=True, desc=f"write {split}") as bar:
        for chunk in puzzles:
            for start in range(0, len(chunk[0]), step):
                questions, answers = (boards[start : start + step] for boards in chunk)
                if num_aug:
                    symmetries = draw(len(questions))
                    questions, answers = symmetries.with_originals(questions), symmetries.with_originals(answers)
                writer.add_boards(split, questions, answers, group_size=copies)
                bar.update(len(questions))
