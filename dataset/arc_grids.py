"""ARC grids as pure functions: the names of augmented tasks, and the 900 tokens that a model reads.

A grid is uint8 `[rows, cols]` of colours 0..9, with 1 to 30 rows and columns. An augmentation is a dihedral transform
k and a permutation of the colours (`colours[c]` is the new colour of colour c) in which 0, the background, stays.
"""

from __future__ import annotations

import re

import numpy as np

from dataset.metadata import PuzzleDatasetMetadata
from dataset.symmetries import inverse_dihedral

SIDE = 30
SEQ_LEN = SIDE * SIDE
NUM_COLOURS = 10
PAD, END, FIRST_COLOUR = 0, 1, 2  # tokens: nothing, end of the grid, colour 0; colour c is FIRST_COLOUR + c
VOCAB_SIZE = FIRST_COLOUR + NUM_COLOURS

AUGMENTED_NAME = re.compile(r"(.+)_t([0-7])_(0[1-9]{9})", re.DOTALL)


def is_arc(metadata: PuzzleDatasetMetadata) -> bool:
    """Return whether a split holds ARC puzzles: by `kind`, or by its sizes where that is not recorded."""
    if metadata.kind is not None:
        return metadata.kind == "arc"
    return (metadata.seq_len, metadata.vocab_size) == (SEQ_LEN, VOCAB_SIZE)


def restore_grid(grid: np.ndarray, k: int, colours: np.ndarray) -> np.ndarray:
    """Undo an augmentation: map a grid of an augmented task back to the task's own.

    Args:
        grid: colours uint8 `[rows, cols]`.
        k: the dihedral transform that was applied, 0 to 7.
        colours: the new colour of each colour, uint8 `[10]`.

    Returns:
        uint8 `[rows, cols]`, or `[cols, rows]` for a transform that swaps them.
    """
    return np.argsort(colours).astype(np.uint8)[inverse_dihedral(grid, k)]


def augmentation_name(task_id: str, k: int, colours: np.ndarray) -> str:
    """Name the puzzle of an augmented task: `<task_id>_t<k>_<10 digits>`, digit c being the new colour of colour c."""
    return f"{task_id}_t{k}_{''.join(map(str, colours))}"


def parse_augmentation_name(name: str) -> tuple[str, int, np.ndarray]:
    """Take a puzzle name apart.

    A name counts as augmented if it ends in `_t<k>_<10 digits>` with k in 0..7 and the digits 0, then 1..9 in any
    order. What stands before that is the task id, whatever it holds.

    Returns:
        Task id, transform k and colours, uint8 `[10]`. A task's own name gives k = 0 and the identity.
    """
    match = AUGMENTED_NAME.fullmatch(name)
    if match is None or len(set(match[3])) < NUM_COLOURS:
        return name, 0, np.arange(NUM_COLOURS, dtype=np.uint8)
    return match[1], int(match[2]), np.array([int(digit) for digit in match[3]], np.uint8)


def place_grids(grids: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Place grids of one shape on boards of 30x30.

    END follows below a grid along its width and to its right along its height, as far as the board reaches; all else
    is PAD.

    Args:
        grids: colours, uint8 `[n, rows, cols]`.
        top: the row of each grid's top left cell, integer `[n]`; the grid must fit there.
        left: its column, integer `[n]`.

    Returns:
        Tokens, uint8 `[n, 900]`.
    """
    n, rows, cols = grids.shape
    framed: np.ndarray = np.full((n, rows + 1, cols + 1), END, np.uint8)
    framed[:, :rows, :cols] = grids
    framed[:, :rows, :cols] += FIRST_COLOUR
    framed[:, rows, cols] = PAD
    boards = np.full((n, SIDE + 1, SIDE + 1), PAD, np.uint8)  # one line more, where END is off the board
    row = top[:, None, None] + np.arange(rows + 1)[:, None]
    col = left[:, None, None] + np.arange(cols + 1)
    boards[np.arange(n)[:, None, None], row, col] = framed
    return boards[:, :SIDE, :SIDE].reshape(n, SEQ_LEN)


def grid_shapes(tokens: np.ndarray) -> np.ndarray:
    """Find the shape of the grid at the top left of each board.

    That is the largest rectangle by area that starts at (0, 0) and holds only colours; of several the one with the
    fewest rows.

    Args:
        tokens: `[n, 900]`.

    Returns:
        Rows and columns, int `[n, 2]`; (0, 0) if cell (0, 0) is no colour.
    """
    boards = tokens.reshape(-1, SIDE, SIDE)
    is_colour = (boards >= FIRST_COLOUR) & (boards < VOCAB_SIZE)
    run = np.logical_and.accumulate(is_colour, axis=2).sum(axis=2)  # (n, row): colours from the left edge on
    width = np.minimum.accumulate(run, axis=1)  # (n, row): of the widest rectangle that ends in this row
    area = width * np.arange(1, SIDE + 1)
    last = np.argmax(area, axis=1)
    cols = np.take_along_axis(width, last[:, None], axis=1)[:, 0]
    return np.stack((np.where(cols > 0, last + 1, 0), cols), axis=1)


def tokens_to_grid(tokens: np.ndarray) -> np.ndarray:
    """Cut out the grid at the top left of one board: colours uint8 `[rows, cols]`, `[0, 0]` if there is none."""
    rows, cols = grid_shapes(tokens)[0]
    return (tokens.reshape(SIDE, SIDE)[:rows, :cols] - FIRST_COLOUR).astype(np.uint8)
