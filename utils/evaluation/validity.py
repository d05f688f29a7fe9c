"""Checks of answers without the label: a Sudoku against the rules, a path through a maze."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dataset import mazes
from dataset.kinds import sudoku_board
from dataset.metadata import PuzzleDatasetMetadata

# tokens (inputs, preds), both integer [b, seq_len] -> bool [b]
Check = Callable[[np.ndarray, np.ndarray], np.ndarray]


def answer_checks(metadata: PuzzleDatasetMetadata) -> dict[str, Check]:
    """Choose the checks that fit a data set.

    Data sets without `kind` count as Sudoku or mazes only in the published sizes, 9x9 with 11 tokens and 30x30 with 6,
    which no other data set has. A Sudoku without `box` has square boxes, if its side allows them.

    Args:
        metadata: of the split that is evaluated.

    Returns:
        Checks by the name of their metric: `valid` for Sudoku; `valid_path` and `optimal` for mazes; none for other
        kinds, and for mazes that aren't square.

    Raises:
        UserError: if `box` does not fit `seq_len`.
    """
    side = math.isqrt(metadata.seq_len)
    published = {(81, 11): "sudoku", (900, 6): "maze"}
    kind = metadata.kind or published.get((metadata.seq_len, metadata.vocab_size))
    if kind == "sudoku":
        board = sudoku_board(metadata)
        return {} if board is None else {"valid": board.is_valid_answer}
    if kind == "maze" and side * side == metadata.seq_len:
        return {"valid_path": mazes.is_valid_path, "optimal": mazes.is_shortest_path}
    return {}
