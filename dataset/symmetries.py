"""Symmetries of puzzles, the augmentation of all builders: cells move and values are renamed.

A symmetric copy of a puzzle is a valid puzzle; its answer is moved and renamed in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_DIHEDRAL = 8
DIHEDRAL_INVERSE = [0, 3, 2, 1, 4, 5, 6, 7]


def dihedral(grid: np.ndarray, k: int) -> np.ndarray:
    """Turn or mirror grids by transform k.

    0: identity; 1 to 3: turned counter-clockwise by 90, 180, 270 degrees; 4: flipped left to right; 5: upside down;
    6: transposed; 7: transposed along the other diagonal.

    Args:
        grid: `[..., rows, cols]`.
        k: 0 to 7.

    Returns:
        A view, with rows and columns swapped for k = 1, 3, 6 and 7.

    Raises:
        ValueError: for another k.
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
    """Undo transform k: `inverse_dihedral(dihedral(grid, k), k)` equals `grid`, for grids `[..., rows, cols]`.

    Raises:
        ValueError: if k is not 0 to 7.
    """
    if not 0 <= k < NUM_DIHEDRAL:
        raise ValueError(f"dihedral transform is {k}, expected 0 to {NUM_DIHEDRAL - 1}")
    return dihedral(grid, DIHEDRAL_INVERSE[k])


def relabel(boards: np.ndarray, value_map: np.ndarray) -> np.ndarray:
    """Rename the values of board i by row i of a table.

    Args:
        boards: values below V, `[n, S]`.
        value_map: the new value of each value, uint8 `[n, V]`.

    Returns:
        uint8 `[n, S]`.
    """
    # One flat lookup: entry (i, v) of value_map stands at i * V + v.
    return value_map.ravel()[boards + (np.arange(len(boards)) * value_map.shape[1])[:, None]]


def draw_lines(rng: np.random.Generator, lines_per_block: int, blocks: int) -> np.ndarray:
    """Draw an order of a Sudoku's rows (or columns) that keeps blocks together, each as likely as the others.

    Returns:
        int64 `[lines_per_block * blocks]`; entry r is the line that moves to place r.
    """
    within = rng.permuted(np.tile(np.arange(lines_per_block), (blocks, 1)), axis=1)
    return (rng.permutation(blocks)[:, None] * lines_per_block + within).ravel()


def sudoku_cell_sources(rows: np.ndarray, cols: np.ndarray, transposed: np.ndarray) -> np.ndarray:
    """Find where the cells of Sudoku come from whose lines are permuted, n boards of side d at once.

    Args:
        rows: the row that moves to each place, integer `[n, d]`.
        cols: the column that moves to each place, integer `[n, d]`.
        transposed: whether the board is transposed before that, bool `[n]`.

    Returns:
        `cell_source` of `Symmetries`, `[n, d * d]`, of the smallest unsigned dtype that holds it.
    """
    side = rows.shape[1]
    dtype = np.min_scalar_type(side * side - 1)
    # Cell (r, c) comes from (rows[r], cols[c]) of the board, or from (cols[c], rows[r]) of it where it is transposed.
    row_step, col_step = np.where(transposed, 1, side)[:, None], np.where(transposed, side, 1)[:, None]
    from_row, from_col = (rows * row_step).astype(dtype), (cols * col_step).astype(dtype)
    cell_source = from_row[:, :, None] + from_col[:, None, :]
    return cell_source.reshape(-1, side * side)


@dataclass(frozen=True)
class Symmetries:
    """n symmetries of a board with S cells: each moves cells and renames values.

    Attributes:
        cell_source: integer `[n, S]`, a permutation of 0..S-1 per row; cell s of the result comes from cell
            `cell_source[i, s]` of the original.
        value_map: uint8 `[n, V]`; value v of the original becomes `value_map[i, v]`.
    """

    cell_source: np.ndarray
    value_map: np.ndarray

    def apply(self, boards: np.ndarray) -> np.ndarray:
        """Transform board i by symmetry i: uint8 `[n, S]` of values below V -> uint8 `[n, S]`."""
        return relabel(np.take_along_axis(boards, self.cell_source, axis=1), self.value_map)

    def with_originals(self, boards: np.ndarray) -> np.ndarray:
        """Follow each board by its c copies, where there are n = p * c symmetries.

        Args:
            boards: uint8 `[p, S]`. Symmetries i*c to (i+1)*c - 1 make the copies of board i.

        Returns:
            uint8 `[p * (1 + c), S]`.
        """
        puzzles, cells = boards.shape
        copies = self.apply(np.repeat(boards, len(self.cell_source) // puzzles, axis=0)).reshape(puzzles, -1, cells)
        return np.concatenate((boards[:, None], copies), axis=1).reshape(-1, cells)
