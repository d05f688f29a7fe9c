"""Files of pairs, CSV or JSONL, as boards: a puzzle and its answer in each line, over the user's own symbols."""

from __future__ import annotations

import csv
import io
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import UserError, shown
from common.progress import progress_bar
from dataset.csv_puzzles import read_csv
from dataset.dataset_files import MAX_SEQ_LEN
from dataset.metadata import BLANK_IDENTIFIER, MAX_SYMBOL_LENGTH, TOKEN_DTYPE, is_symbol

MAX_SIDE = 30  # rows and columns of a grid
MAX_SYMBOLS = np.iinfo(TOKEN_DTYPE).max  # token 0 is padding
COLUMNS, PUZZLE = ("input", "output"), "puzzle"
# How a grid begins in a cell of a CSV file, where all is text
GRID_STARTS = ("[[", '["')

Shape = tuple[int, int]  # rows and columns


class Symbols(dict[int | str, int]):
    """The code of each symbol, 0, 1, … in the order in which they appear. A number is the symbol of its digits."""

    def __missing__(self, cell: int | str) -> int:
        text = str(cell)
        if text != cell and text in self:
            code = self[text]
        else:
            if not is_symbol(text):
                raise UserError(f"has {shown(text)}, expected symbols of 1 to {MAX_SYMBOL_LENGTH} printable characters")
            code = len(self.texts)
            if code == MAX_SYMBOLS:
                raise UserError(f"brings {shown(text)} as one symbol too many, expected at most {MAX_SYMBOLS}")
            self[text] = code
        self[cell] = code
        return code

    @property
    def texts(self) -> list[str]:
        """The symbols in the order of their codes."""
        return [cell for cell in self if isinstance(cell, str)]


@dataclass
class Pairs:
    """The examples of one or more files.

    Attributes:
        inputs: the codes of all inputs, one after the other.
        outputs: those of all outputs.
        shapes: of each example's boards; a text has one row.
        puzzles: the identifier of each example's puzzle.
        lines: the number of the line that each example stands on.
    """

    inputs: bytearray = field(default_factory=bytearray)
    outputs: bytearray = field(default_factory=bytearray)
    shapes: list[Shape] = field(default_factory=list)
    puzzles: array[int] = field(default_factory=lambda: array("i"))
    lines: array[int] = field(default_factory=lambda: array("q"))

    def boards(self, shape: Shape, token_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lay all examples out in boards of one shape, with padding to the right and below.

        Args:
            shape: rows and columns, of the largest example or more.
            token_of: the token of each code, uint8 `[codes]`.

        Returns:
            The tokens of inputs and outputs, uint8 `[examples, rows * columns]`.
        """
        rows, cols = shape
        laid_out = []
        for codes in (self.inputs, self.outputs):
            tokens = token_of[np.frombuffer(codes, np.uint8)]
            if set(self.shapes) != {shape}:
                padded = np.zeros((len(self.shapes), rows, cols), TOKEN_DTYPE)
                start = 0
                for board, (height, width) in zip(padded, self.shapes, strict=True):
                    stop = start + height * width
                    board[:height, :width] = tokens[start:stop].reshape(height, width)
                    start = stop
                tokens = padded
            laid_out.append(tokens.reshape(len(self.shapes), rows * cols))
        return laid_out[0], laid_out[1]


class PairsReader:
    """Reads files of pairs that share symbols, the form of their boards, and the names of puzzles.

    Attributes:
        symbols: of all files read so far.
        identifiers: the names of puzzles, index = identifier; the first is the blank one.
        are_grids: whether boards are grids and no texts; None before the first example.
        are_named: whether examples name their puzzle; None before the first example.
    """

    def __init__(self) -> None:
        self.symbols = Symbols()
        self.identifiers = [BLANK_IDENTIFIER]
        self.are_grids: bool | None = None
        self.are_named: bool | None = None
        self._identifier_of: dict[str, int] = {}
        self._text_length: tuple[int, str] | None = None  # of all texts, and where the first one stands
        self._shapes: dict[Shape, Shape] = {}  # one object for each

    def read(self, path: Path) -> Pairs:
        """Read a file.

        Raises:
            UserError: naming file and line, for anything but pairs of boards of the same form and shape.
        """
        if path.suffix.lower() not in (".csv", ".jsonl"):
            raise UserError(f"{path}: expected a file whose name ends in .csv or .jsonl")
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)
        pairs = Pairs()
        for line, row in rows:
            try:
                self._add(pairs, row, f"{path}:{line}")
            except UserError as error:
                raise UserError(f"{path}:{line}: {error}") from None
            pairs.lines.append(line)
        if not pairs.shapes:
            raise UserError(f"{path} holds no examples: expected one a line, input and output")
        return pairs

    def _add(self, pairs: Pairs, row: dict[str, object], where: str) -> None:
        shapes = []
        for column, codes in zip(COLUMNS, (pairs.inputs, pairs.outputs), strict=True):
            value = row[column]
            try:
                shapes.append(self._add_grid(codes, value) if isinstance(value, list) else self._add_text(codes, value))
            except UserError as error:
                raise UserError(f"{column} {error}") from None
            self._check_form(column, isinstance(value, list))
        if shapes[0] != shapes[1]:
            expected, found = (f"{rows} × {cols}" if self.are_grids else str(cols) for rows, cols in shapes)
            unit = "cells" if self.are_grids else "characters"
            raise UserError(f"output has {found} {unit}, expected {expected} as the input")
        if not self.are_grids:
            length, first = self._text_length = self._text_length or (shapes[0][1], where)
            if shapes[0][1] != length:
                raise UserError(f"input has {shapes[0][1]} characters, expected {length} as in {first}")
        pairs.shapes.append(self._shapes.setdefault(shapes[0], shapes[0]))
        pairs.puzzles.append(self._identifier(row))

    def _check_form(self, column: str, is_grid: bool) -> None:
        if self.are_grids is None:
            self.are_grids = is_grid
        elif is_grid != self.are_grids:
            forms = ("a text", "a grid")
            raise UserError(f"{column} is {forms[is_grid]}, expected {forms[self.are_grids]} as before")

    def _add_text(self, codes: bytearray, value: object) -> Shape:
        if not isinstance(value, str):
            raise UserError(f"is {shown(value)}, expected a text or a list of rows")
        if not 1 <= len(value) <= MAX_SEQ_LEN:
            raise UserError(f"has {len(value)} characters, expected 1 to {MAX_SEQ_LEN}")
        codes += bytes(map(self.symbols.__getitem__, value))
        return 1, len(value)

    def _add_grid(self, codes: bytearray, rows: list[object]) -> Shape:
        width = None
        for number, row in enumerate(rows, 1):
            if not isinstance(row, list | str):
                raise UserError(f"has {shown(row)} as row {number}, expected a list of numbers or texts")
            if width is None:
                width = len(row)
            if len(row) != width:
                raise UserError(f"has {len(row)} cells in row {number}, expected {width} as in row 1")
            if not 1 <= width <= MAX_SIDE or len(rows) > MAX_SIDE:
                raise UserError(f"is {len(rows)} × {width}, expected 1 × 1 to {MAX_SIDE} × {MAX_SIDE}")
            if not set(map(type, row)) <= {int, str}:  # True is no number here, though Python takes it for 1
                wrong = next(cell for cell in row if type(cell) not in (int, str))
                raise UserError(f"has {shown(wrong)} in row {number}, expected whole numbers or texts")
            codes += bytes(map(self.symbols.__getitem__, row))
        if width is None:
            raise UserError("has no rows")
        return len(rows), width

    def _identifier(self, row: dict[str, object]) -> int:
        is_named = PUZZLE in row
        if self.are_named is None:
            self.are_named = is_named
        elif is_named != self.are_named:
            raise UserError(f"{'names a' if is_named else 'has no'} {PUZZLE}, unlike the examples before")
        if not is_named:
            return 0
        name = row[PUZZLE]
        name = str(name) if type(name) is int else name
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or name == BLANK_IDENTIFIER:
            raise UserError(f"{PUZZLE} is {shown(row[PUZZLE])}, expected the name of a puzzle")
        if name not in self._identifier_of:
            self._identifier_of[name] = len(self.identifiers)
            self.identifiers.append(name)
        return self._identifier_of[name]


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the number of each line of a CSV file, and its cells by column. A grid is parsed."""
    header = _csv_header(path)
    unknown = next((name for name in header if name not in (*COLUMNS, PUZZLE)), None)
    if unknown is not None:
        raise UserError(f"{path}:1: unknown column {shown(unknown)}: expected input, output and, if wanted, puzzle")
    if len(set(header)) < len(header):
        raise UserError(f"{path}:1: a column stands there twice: found {', '.join(header)}")
    for rows in read_csv(path, (*COLUMNS, PUZZLE) if PUZZLE in header else COLUMNS):
        for number, line in enumerate(rows.lines):
            row: dict[str, object] = {name: cells[number] for name, cells in rows.columns.items()}
            for column in COLUMNS:
                text = rows.columns[column][number]
                if text.lstrip().startswith(GRID_STARTS):
                    row[column] = _parse_json(text, f"{path}:{line}: {column}")
            yield line, row


def _csv_header(path: Path) -> list[str]:
    """Return the names of a CSV file's columns; none where `read_csv` will say what is wrong."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as text:
        try:
            return next(csv.reader(text), [])
        except csv.Error:
            return []


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the number of each line of a JSONL file, and its object."""
    with (
        open(path, "rb") as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig") as text,
        progress_bar(total=os.path.getsize(path), unit="B", unit_scale=True, desc=f"read {path.name}") as bar,
    ):
        line = 0
        try:
            for line, content in enumerate(text, 1):
                bar.update(raw.tell() - bar.n)
                if not content.strip():  # an empty line is harmless
                    continue
                row = _parse_json(content, f"{path}:{line}")
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{line}: {shown(row)} is no object, expected one with input and output")
                for key in COLUMNS:
                    if key not in row:
                        raise UserError(f"{path}:{line}: no {key!r}: found {', '.join(map(shown, row)) or 'no keys'}")
                unknown = next((key for key in row if key not in (*COLUMNS, PUZZLE)), None)
                if unknown is not None:
                    raise UserError(
                        f"{path}:{line}: unknown key {shown(unknown)}: expected input, output and, if wanted, puzzle"
                    )
                yield line, row
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text after line {line}: {error.reason}") from error


def _parse_json(text: str, where: str) -> object:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "a number or a list beyond all bounds"
        raise UserError(f"{where}: not valid JSON: {reason}") from None
    return parsed
