"""Answers that can be checked without the label: a Sudoku that breaks no rule, a maze path that reaches the goal.

Everything works on batches of token rows, `[b, seq_len]`, in the formats of the data set builders.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from common.errors import UserError
from dataset.metadata import PuzzleDatasetMetadata

SUDOKU_BLANK = 1  # tokens: digit d is d + 1
WALL, OPEN, START, GOAL, PATH = 1, 2, 3, 4, 5  # tokens of "# SGo"

# (inputs, preds), both integer [b, seq_len] -> bool [b]
Check = Callable[[np.ndarray, np.ndarray], np.ndarray]


def answer_checks(metadata: PuzzleDatasetMetadata) -> dict[str, Check]:
    """The checks that fit a data set, by the name of their metric.

    Sudoku: `valid`; mazes: `valid_path` and `optimal`; other kinds, and mazes that aren't square: none. Files without
    `kind` are taken for Sudoku or mazes only in the published sizes, 9x9 with 11 tokens and 30x30 with 6, which nothing
    else has. A Sudoku without `box` has square boxes, if its side allows them.

    Raises:
        UserError: if `box` does not fit `seq_len`.
    """
    side = math.isqrt(metadata.seq_len)
    published = {(81, 11): "sudoku", (900, 6): "maze"}
    kind = metadata.kind or published.get((metadata.seq_len, metadata.vocab_size))
    if kind == "sudoku":
        box_side = math.isqrt(side)
        box_rows, box_cols = metadata.box or (box_side, box_side)
        if box_rows < 1 or (box_rows * box_cols) ** 2 != metadata.seq_len:
            if metadata.box is None:
                return {}
            raise UserError(
                f"dataset.json: box is {list(metadata.box)}, expected rows and columns whose product squared is "
                f"seq_len = {metadata.seq_len}; build the data set again"
            )
        return {"valid": lambda inputs, preds: valid_sudoku(inputs, preds, box_rows, box_cols)}
    if kind == "maze" and side * side == metadata.seq_len:
        return {"valid_path": valid_path, "optimal": optimal_path}
    return {}


def valid_sudoku(inputs: np.ndarray, preds: np.ndarray, box_rows: int, box_cols: int) -> np.ndarray:
    """Which answers keep all clues and hold every digit once in each row, column and box: bool `[b]`.

    A puzzle with several solutions has several valid answers, of which the label is one.
    """
    n = box_rows * box_cols
    digits = preds.astype(np.int64) - SUDOKU_BLANK
    bits = np.where((digits >= 1) & (digits <= n), 1 << np.clip(digits, 0, n), 0).reshape(-1, n, n)  # (b, row, col)
    boxes = bits.reshape(-1, n // box_rows, box_rows, n // box_cols, box_cols).swapaxes(2, 3).reshape(-1, n, n)
    units = np.concatenate((bits, bits.swapaxes(1, 2), boxes), axis=1)  # (b, 3n, n)
    every_digit = (1 << (n + 1)) - 2
    complete = (np.bitwise_or.reduce(units, axis=2) == every_digit).all(axis=1)
    return complete & ((inputs <= SUDOKU_BLANK) | (inputs == preds)).all(axis=1)


def valid_path(inputs: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """Which answers lead from start to goal: bool `[b]`.

    The maze must be kept (walls, start and goal where they were, nothing but path on open cells), and path cells must
    join start and goal, from neighbour to neighbour among four. Path cells elsewhere, a dead end say, do no harm here.
    """
    kept = np.where(inputs == OPEN, (preds == OPEN) | (preds == PATH), inputs == preds).all(axis=1)
    valid = kept & ((inputs == START).sum(axis=1) == 1) & ((inputs == GOAL).sum(axis=1) == 1)
    if valid.any():
        rows = preds[valid]
        valid[valid] = distances(rows, (rows != WALL) & (rows != OPEN)) > 0
    return valid


def optimal_path(inputs: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """Which answers are valid paths with as many path cells as a shortest path: bool `[b]`.

    So there are no detours and no stray cells. A maze may have many shortest paths, of which the label is one.
    """
    optimal = valid_path(inputs, preds)
    if optimal.any():
        mazes = inputs[optimal]
        path_cells = (preds[optimal] == PATH).sum(axis=1)
        optimal[optimal] = path_cells == distances(mazes, mazes != WALL) - 1
    return optimal


def distances(mazes: np.ndarray, passable: np.ndarray) -> np.ndarray:
    """Moves from start to goal over passable cells: int64 `[b]`, -1 where there is no way.

    Args:
        mazes: square mazes, tokens `[b, seq_len]` with one start and one goal each.
        passable: bool `[b, seq_len]`.
    """
    count, side = len(mazes), math.isqrt(mazes.shape[1])
    # With a border of walls, all boards laid end to end are one array, in which no move leads from board to board.
    border = ((0, 0), (1, 1), (1, 1))
    free = np.pad(passable.reshape(count, side, side), border).ravel()
    bordered = np.pad(mazes.reshape(count, side, side), border).ravel()
    goals = np.flatnonzero(bordered == GOAL)
    width = side + 2

    reached = bordered == START
    found: np.ndarray = np.full(count, -1, np.int64)
    for moves in range(mazes.shape[1]):
        found[(found < 0) & reached[goals]] = moves
        if (found >= 0).all():
            break
        grown = reached.copy()
        for shift in (1, width):
            grown[shift:] |= reached[:-shift]
            grown[:-shift] |= reached[shift:]
        grown &= free
        if np.array_equal(grown, reached):
            break
        reached = grown
    return found
