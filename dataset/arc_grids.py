"""ARC grids as pure functions: symmetries, the names of augmented tasks, and the 900 tokens that a model reads.

What the builder does to a task and what scoring must undo stand here side by side. A grid is uint8 `[rows, cols]` of
colours 0..9, with 1 to 30 rows and columns. An augmentation is a dihedral transform k and a permutation of the colours
(`colours[c]` is the new colour of colour c) in which 0, the background, stays.
"""

from __future__ import annotations

import re

import numpy as np

SIDE = 30
SEQ_LEN = SIDE * SIDE
NUM_COLOURS = 10
PAD, END, FIRST_COLOUR = 0, 1, 2  # tokens: nothing, end of the grid, colour 0; colour c is FIRST_COLOUR + c
VOCAB_SIZE = FIRST_COLOUR + NUM_COLOURS

NUM_DIHEDRAL = 8
DIHEDRAL_INVERSE = [0, 3, 2, 1, 4, 5, 6, 7]

AUGMENTED_NAME = re.compile(r"(.+)_t([0-7])_(0[1-9]{9})", re.DOTALL)


def dihedral(grid: np.ndarray, k: int) -> np.ndarray:
    """Transform k, 0..7, of grids `[..., rows, cols]`; a view, with rows and columns swapped for k = 1, 3, 6 and 7.

    0: identity; 1 to 3: turned counter-clockwise by 90, 180, 270 degrees; 4: flipped left to right; 5: upside down;
    6: transposed; 7: transposed along the other diagonal. Raises ValueError for another k.
    """
    axes = (-2, -1)
    if 0 <= k <= 3:
        return np.rot90(grid, k, axes)
    if k == 4:
        return np.flip(grid, -1)
    if k == 5:
        return np.flip(grid, -2)
    if k == 6:
        return np.swapaxes(grid, *axes)
    if k == 7:
        return np.flip(np.rot90(grid, 1, axes), -1)
    raise ValueError(f"dihedral transform is {k}, expected 0 to {NUM_DIHEDRAL - 1}")


def inverse_dihedral(grid: np.ndarray, k: int) -> np.ndarray:
    """Undo transform k: `inverse_dihedral(dihedral(grid, k), k)` equals `grid`, for grids `[..., rows, cols]`."""
    if not 0 <= k < NUM_DIHEDRAL:
        raise ValueError(f"dihedral transform is {k}, expected 0 to {NUM_DIHEDRAL - 1}")
    return dihedral(grid, DIHEDRAL_INVERSE[k])


def augment_grid(grid: np.ndarray, k: int, colours: np.ndarray) -> np.ndarray:
    """Colours 0..9 `[..., rows, cols]` recoloured by `colours` (uint8 `[10]`), then moved by transform k."""
    return dihedral(colours[grid], k)


def restore_grid(grid: np.ndarray, k: int, colours: np.ndarray) -> np.ndarray:
    """Undo `augment_grid` with the same k and colours: maps an answer to an augmented task back to the task's own."""
    original_colour = np.argsort(colours).astype(np.uint8)
    return original_colour[inverse_dihedral(grid, k)]


def augmentation_name(task_id: str, k: int, colours: np.ndarray) -> str:
    """The puzzle name of an augmented task: `<task_id>_t<k>_<10 digits>`, digit c being the new colour of colour c."""
    return f"{task_id}_t{k}_{''.join(map(str, colours))}"


def parse_augmentation_name(name: str) -> tuple[str, int, np.ndarray]:
    """Task id, transform k and colours (uint8 `[10]`) of a puzzle name; a task's own name gives k = 0 and the identity.

    A name counts as augmented if it ends in `_t<k>_<10 digits>` with k in 0..7 and the digits 0, then 1..9 in any
    order. What stands before that is the task id, whatever it holds.
    """
    match = AUGMENTED_NAME.fullmatch(name)
    if match is None or len(set(match[3])) < NUM_COLOURS:
        return name, 0, np.arange(NUM_COLOURS, dtype=np.uint8)
    return match[1], int(match[2]), np.array([int(digit) for digit in match[3]], np.uint8)


def grid_to_tokens(grid: np.ndarray, row: int = 0, col: int = 0) -> np.ndarray:
    """A grid with its top left cell at (row, col) of a 30x30 board, as tokens uint8 `[900]`.

    Below the grid and to the right of it, where that is still on the board, stands END, along its width and height; all
    else is PAD. Raises ValueError if the grid is empty or doesn't fit there.
    """
    rows, cols = grid.shape
    bottom, right = row + rows, col + cols
    if not (rows and cols and row >= 0 and col >= 0 and bottom <= SIDE and right <= SIDE):
        raise ValueError(f"grid of {rows}x{cols} at ({row}, {col}), expected 1x1 or more, inside {SIDE}x{SIDE}")
    board: np.ndarray = np.full((SIDE, SIDE), PAD, np.uint8)
    board[bottom : bottom + 1, col:right] = END
    board[row:bottom, right : right + 1] = END
    board[row:bottom, col:right] = grid + np.uint8(FIRST_COLOUR)
    return board.ravel()


def grid_shapes(tokens: np.ndarray) -> np.ndarray:
    """How large a grid stands at the top left of each board: tokens `[n, 900]` -> rows and columns, int `[n, 2]`.

    That is the largest rectangle by area which starts at (0, 0) and holds colours only, with the fewest rows if several
    are equally large; (0, 0) if cell (0, 0) is no colour.
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
    """The grid at the top left of one board, tokens `[900]` -> colours uint8 `[rows, cols]`: see `grid_shapes`.

    Undoes `grid_to_tokens` for a grid at (0, 0). Works for any tokens, such as a model's; may return `[0, 0]`.
    """
    rows, cols = grid_shapes(tokens)[0]
    return (tokens.reshape(SIDE, SIDE)[:rows, :cols] - FIRST_COLOUR).astype(np.uint8)
