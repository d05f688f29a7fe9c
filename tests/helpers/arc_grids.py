"""Single ARC grids, augmented and laid on boards in the plainest way, to compare stacks of boards with."""

from __future__ import annotations

import numpy as np

from dataset.arc_grids import FIRST_COLOUR, SIDE, grid_shapes, place_grids
from dataset.symmetries import dihedral, inverse_dihedral


def augment_grid(grid: np.ndarray, k: int, colours: np.ndarray) -> np.ndarray:
    """Recolour a grid, then move it by transform k."""
    return dihedral(colours[grid], k)


def restore_grid(grid: np.ndarray, k: int, colours: np.ndarray) -> np.ndarray:
    """Undo `augment_grid` with the same k and colours."""
    return np.argsort(colours).astype(np.uint8)[inverse_dihedral(grid, k)]


def grid_to_tokens(grid: np.ndarray, row: int = 0, col: int = 0) -> np.ndarray:
    """Place one grid with its top left cell at (row, col): tokens, uint8 `[900]`."""
    return place_grids(grid[None], np.array([row]), np.array([col]))[0]


def tokens_to_grid(tokens: np.ndarray) -> np.ndarray:
    """Cut out the grid at the top left of one board: colours, uint8 `[rows, cols]`, maybe `[0, 0]`."""
    rows, cols = grid_shapes(tokens)[0]
    return (tokens.reshape(SIDE, SIDE)[:rows, :cols] - FIRST_COLOUR).astype(np.uint8)
