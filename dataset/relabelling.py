"""Symmetric copies of a puzzle at test time: a model answers the copy, and its answer is mapped back.

What a copy and its answer stand for is what the puzzle and its answer stand for, in other tokens at other places.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common import IGNORE_LABEL_ID
from common.errors import UserError, shown_name
from dataset.arc_grids import FIRST_COLOUR, NUM_COLOURS, PAD, SEQ_LEN, SIDE, place_grids, restore_grid, tokens_to_grid
from dataset.kinds import kind_of, sudoku_board
from dataset.mazes import VOCAB_SIZE
from dataset.metadata import PuzzleDatasetMetadata
from dataset.sudoku import BLANK_TOKEN, Board
from dataset.symmetries import NUM_DIHEDRAL, dihedral, draw_lines, sudoku_cell_sources


class Relabelling(Protocol):
    """One symmetry of a puzzle's board."""

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """Make the copy of a puzzle or of its labels.

        Args:
            tokens: integers `[s]`. Padding stays padding, and -100, a label without loss, stays that.

        Returns:
            int32 `[s]`.
        """
        ...

    def undo(self, tokens: np.ndarray) -> np.ndarray:
        """Map a model's answer to the copy, or anything else on the copy's board, to the board of the puzzle.

        Args:
            tokens: integers `[s]`, of any values.

        Returns:
            int32 `[s]`.
        """
        ...


Draw = Callable[[np.random.Generator, np.ndarray], Relabelling]


def relabeller(metadata: PuzzleDatasetMetadata) -> Draw:
    """Choose the symmetries that fit a data set.

    Sudoku: digits, bands, rows in a band, stacks and columns in a stack are permuted, and the board is transposed or
    not where its boxes are square. Mazes: the 8 turned and mirrored copies. ARC: those of the grid, and a permutation
    of the colours 1 to 9.

    Args:
        metadata: of the split whose puzzles are copied.

    Returns:
        `draw(rng, inputs)`, which draws one relabelling for a puzzle's tokens, int `[s]`, each symmetry as likely as
        the others. The identity is one of them.

    Raises:
        UserError: for kinds of puzzles without known symmetries, and boards that don't fit their kind.
    """
    kind, side = kind_of(metadata), math.isqrt(metadata.seq_len)
    if kind == "sudoku":
        board = sudoku_board(metadata)
        if board is None:
            raise UserError(
                f"symmetric copies of Sudoku with {metadata.seq_len} cells: dataset.json names no box, "
                'expected its rows and columns, such as "box": [2, 3]'
            )
        return lambda rng, inputs: _draw_sudoku(rng, board)
    if kind == "maze":
        if side * side != metadata.seq_len or metadata.shape not in (None, (side, side)):
            rows, cols = metadata.shape or (1, metadata.seq_len)
            raise UserError(f"symmetric copies of mazes: they have {rows}x{cols} cells, expected a square")
        return lambda rng, inputs: _draw_maze(rng, side)
    if kind == "arc":
        if metadata.seq_len != SEQ_LEN:
            raise UserError(f"symmetric copies of ARC grids: seq_len is {metadata.seq_len}, expected {SEQ_LEN}")
        return _draw_arc
    found = "no kind" if metadata.kind is None else f"the kind {shown_name(metadata.kind)}"
    raise UserError(
        f"symmetric copies: dataset.json names {found}, whose symmetries aren't known; expected sudoku, maze or arc"
    )


@dataclass(frozen=True)
class _Moved:
    """Cells that move on a board, and tokens that are renamed.

    Attributes:
        cell_source: a permutation of the cells, integer `[s]`; cell i of the copy comes from cell `cell_source[i]`.
        new_token: a permutation of the tokens, int32 `[v]`; other numbers stay as they are.
    """

    cell_source: np.ndarray
    new_token: np.ndarray

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        return _renamed(tokens[self.cell_source], self.new_token)

    def undo(self, tokens: np.ndarray) -> np.ndarray:
        return _renamed(tokens[np.argsort(self.cell_source)], np.argsort(self.new_token))


def _renamed(tokens: np.ndarray, new_token: np.ndarray) -> np.ndarray:
    is_known = (tokens >= 0) & (tokens < len(new_token))
    return np.where(is_known, new_token[np.where(is_known, tokens, 0)], tokens).astype(np.int32)


def _draw_sudoku(rng: np.random.Generator, board: Board) -> Relabelling:
    # There are box_cols bands of box_rows rows, and box_rows stacks
    rows = draw_lines(rng, board.box_rows, board.box_cols)
    cols = draw_lines(rng, board.box_cols, board.box_rows)
    # Boxes that aren't square would lie on their sides in a transposed board
    transposed = board.box_rows == board.box_cols and bool(rng.integers(2))
    cell_source = sudoku_cell_sources(rows[None], cols[None], np.array([transposed]))[0]
    digits = BLANK_TOKEN + 1 + rng.permutation(board.side)
    return _Moved(cell_source, np.concatenate((np.arange(BLANK_TOKEN + 1), digits)))


def _draw_maze(rng: np.random.Generator, side: int) -> Relabelling:
    cells = np.arange(side * side).reshape(side, side)
    return _Moved(dihedral(cells, int(rng.integers(NUM_DIHEDRAL))).ravel(), np.arange(VOCAB_SIZE))


@dataclass(frozen=True)
class _Augmented:
    """A grid of ARC that is turned or mirrored and recoloured, on a board where it stands at the top left.

    Attributes:
        k: the dihedral transform.
        colours: the new colour of each colour, uint8 `[10]`.
        top: the row of the puzzle's grid on its own board, where answers are placed again; 0 in test splits.
        left: its column.
    """

    k: int
    colours: np.ndarray
    top: int
    left: int

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        board = _without_ignored(tokens)
        rows, cols = _lines_with_colours(board)
        grid = board[rows, cols] - FIRST_COLOUR
        if ((grid < 0) | (grid >= NUM_COLOURS)).any():
            raise UserError("symmetric copies of ARC grids: a board holds no rectangle of colours; check the data set")
        return _placed(dihedral(self.colours[grid], self.k), 0, 0, like=tokens)

    def undo(self, tokens: np.ndarray) -> np.ndarray:
        grid = restore_grid(tokens_to_grid(_without_ignored(tokens)), self.k, self.colours)
        # An answer may be too large for the place of the puzzle
        top, left = min(self.top, SIDE - grid.shape[0]), min(self.left, SIDE - grid.shape[1])
        return _placed(grid, top, left, like=tokens)


def _draw_arc(rng: np.random.Generator, inputs: np.ndarray) -> Relabelling:
    rows, cols = _lines_with_colours(_without_ignored(inputs))
    colours: np.ndarray = np.arange(NUM_COLOURS, dtype=np.uint8)
    colours[1:] = 1 + rng.permutation(NUM_COLOURS - 1)  # 0 is the background
    return _Augmented(int(rng.integers(NUM_DIHEDRAL)), colours, rows.start, cols.start)


def _without_ignored(tokens: np.ndarray) -> np.ndarray:
    """Return a board, integer `[30, 30]`, with the padding that data sets have where labels are not scored."""
    return np.where(tokens == IGNORE_LABEL_ID, PAD, tokens).reshape(SIDE, SIDE)


def _lines_with_colours(board: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of a grid wherever it stands, empty ones at 0 where there is none."""
    rows, cols = (np.flatnonzero((board >= FIRST_COLOUR).any(axis=axis)) for axis in (1, 0))
    return (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)) if len(rows) else (slice(0, 0), slice(0, 0))


def _placed(grid: np.ndarray, top: int, left: int, *, like: np.ndarray) -> np.ndarray:
    """Place a grid, none giving padding alone; padding is not scored where `like` has labels that aren't scored."""
    tokens = place_grids(grid[None], np.array([top]), np.array([left]))[0] if grid.size else np.full(SEQ_LEN, PAD)
    tokens = tokens.astype(np.int32)  # a byte holds no -100
    return np.where(tokens == PAD, np.int32(IGNORE_LABEL_ID), tokens) if (like == IGNORE_LABEL_ID).any() else tokens
