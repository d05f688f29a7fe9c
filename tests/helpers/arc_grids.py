"""Single ARC grids, augmented and laid on boards in the plainest way, to compare stacks of boards with."""

from __future__ import annotations

import numpy as np

from dataset.arc_grids import place_grids
from dataset.symmetries import dihedral


def augment_grid(grid: np.ndarray, k: int, colours: np.ndarray) -> np.ndarray:
    """Recolour a grid, then move it by transform k."""
    return dihedral(colours[grid], k)


def grid_to_tokens(grid: np.ndarray, row: int = 0, col: int = 0) -> np.ndarray:
    """Place one grid with its top left cell at (row, col): tokens, uint8 `[900]`."""
    return place_grids(grid[None], np.array([row]), np.array([col]))[0]
