"""Checks of answers without the label: a Sudoku against the rules, a path through a maze."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dataset import mazes
from dataset.kinds import sudoku_board
from dataset.metadata import PuzzleDatasetMetadata

# tokens (inputs, preds), both integer [b, seq_len] -> bool [b]
Check = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rules:
    """What the rules of a puzzle tell of an answer, without its label.

    Attributes:
        holds: whether an answer keeps to them.
        is_best: whether it does, and no answer can be better: any valid Sudoku, a shortest path.
        cost: of an answer that holds, lower is better, tokens `[b, seq_len]` -> integer `[b]`: cells of a path.
    """

    holds: Check
    is_best: Check
    cost: Callable[[np.ndarray], np.ndarray]


def rules_of(metadata: PuzzleDatasetMetadata) -> Rules | None:
    """Return the rules of a data set's puzzles; None where `answer_checks` has none."""
    checks = answer_checks(metadata)
    if "valid" in checks:
        return Rules(checks["valid"], checks["valid"], lambda preds: np.zeros(len(preds), np.int64))
    if "valid_path" in checks:
        return Rules(checks["valid_path"], checks["optimal"], lambda preds: (preds == mazes.PATH + 1).sum(axis=1))
    return None


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
