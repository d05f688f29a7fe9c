"""Kinds of puzzles: what dataset.json names, or what sizes tell where it names none."""

from __future__ import annotations

import math
from typing import Literal

from common.errors import UserError
from dataset import arc_grids, mazes
from dataset.metadata import PuzzleDatasetMetadata
from dataset.sudoku import Board

Kind = Literal["sudoku", "maze", "arc", "tokens"]


def kind_of(metadata: PuzzleDatasetMetadata) -> Kind:
    """Return the kind that dataset.json names, or that sizes tell where it names none; `tokens` for any other."""
    named: dict[str, Kind] = {"sudoku": "sudoku", "maze": "maze", "arc": "arc"}
    if metadata.kind is not None:
        return named.get(metadata.kind, "tokens")
    if metadata.vocabulary is not None:  # puzzles of a kind of their own, whatever their sizes
        return "tokens"
    side = math.isqrt(metadata.seq_len)
    if (metadata.seq_len, metadata.vocab_size) == (arc_grids.SEQ_LEN, arc_grids.VOCAB_SIZE):
        return "arc"
    is_square = side > 1 and side * side == metadata.seq_len
    if is_square and metadata.vocab_size == side + 2:
        return "sudoku"
    return "maze" if is_square and metadata.vocab_size == mazes.VOCAB_SIZE else "tokens"


def sudoku_board(metadata: PuzzleDatasetMetadata) -> Board | None:
    """Return the geometry of a split's Sudoku. Without `box` the boxes are square, if the side allows them.

    Returns:
        The board; None where `box` is not recorded and the sizes don't tell it.

    Raises:
        UserError: if `box` does not fit `seq_len`.
    """
    box_side = math.isqrt(math.isqrt(metadata.seq_len))
    box_rows, box_cols = metadata.box or (box_side, box_side)
    if min(box_rows, box_cols) >= 1 and (box_rows * box_cols) ** 2 == metadata.seq_len:
        return Board(box_rows, box_cols)
    if metadata.box is None:
        return None
    raise UserError(
        f"dataset.json: box is {list(metadata.box)}, expected rows and columns whose product squared is "
        f"seq_len = {metadata.seq_len}; build the data set again"
    )
