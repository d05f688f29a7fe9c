"""Answers without what no label scores: two that differ there alone are one answer."""

from __future__ import annotations

import numpy as np

from dataset.scored import scored_part
from tests.helpers.arc_grids import grid_to_tokens
from tests.helpers.configs import sizes


def test_what_stands_around_an_arc_grid_does_not_count() -> None:
    """Equal answers would not vote for each other, since what a model puts there is never trained."""
    metadata = sizes(900, 12).model_copy(update={"kind": "arc"})
    answer = grid_to_tokens(np.array([[1, 2], [3, 4]], np.uint8))
    noisy = answer.copy()
    noisy[200:] = np.random.default_rng(0).integers(12, size=700)
    np.testing.assert_array_equal(scored_part(metadata, answer, noisy), answer)
    other = grid_to_tokens(np.array([[1, 2], [3, 5]], np.uint8))
    assert (scored_part(metadata, answer, other) != answer).any()
    assert not (scored_part(metadata, answer, np.zeros(900, np.int32)) > 1).any()  # no colours


def test_what_stands_beyond_the_end_of_a_padded_board_does_not_count() -> None:
    """A right answer would be called wrong for a cell that the puzzle doesn't have."""
    metadata = sizes(6, 4).model_copy(update={"kind": "tiles", "vocabulary": ["", "a", "b", "c"], "shape": (2, 3)})
    inputs, preds = np.array([1, 2, 0, 3, 1, 0]), np.array([2, 0, 3, 1, 1, 1])
    assert scored_part(metadata, inputs, preds).tolist() == [2, 0, 0, 1, 1, 0]
    without = metadata.model_copy(update={"vocabulary": None, "kind": "sudoku"})
    assert scored_part(without, inputs, preds).tolist() == preds.tolist()
