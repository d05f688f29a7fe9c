"""The part of an answer that counts: what a model puts where no label is scored was never trained."""

from __future__ import annotations

import numpy as np

from dataset.arc_grids import SIDE, place_grids, tokens_to_grid
from dataset.kinds import kind_of
from dataset.metadata import PuzzleDatasetMetadata


def scored_part(metadata: PuzzleDatasetMetadata, inputs: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """Return an answer with padding where no label is scored: around an ARC grid, and beyond the end of a padded board.

    Args:
        metadata: of the data set.
        inputs: tokens of the puzzle, integer `[s]`.
        preds: tokens of the answer, integer `[s]`.

    Returns:
        int32 `[s]`.
    """
    if kind_of(metadata) == "arc":
        grid = tokens_to_grid(preds.reshape(SIDE, SIDE))
        corner = np.zeros(1, np.int64)
        return place_grids(grid[None], corner, corner)[0].astype(np.int32)
    if metadata.vocabulary is not None:
        return np.where(inputs == metadata.pad_id, metadata.pad_id, preds).astype(np.int32)
    return preds.astype(np.int32)
