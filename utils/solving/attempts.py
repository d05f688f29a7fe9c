"""The two attempts at each test input of an ARC task, as text and as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.errors import printable
from dataset.arc_grids import SEQ_LEN, VOCAB_SIZE, place_grids
from dataset.metadata import bare_metadata
from utils.arc.scoring import InputScore, TaskScore
from utils.arc.submission import attempts
from utils.evaluation.puzzle_view import format_puzzle

_ARC = bare_metadata(SEQ_LEN, VOCAB_SIZE, kind="arc")


def arc_record(score: TaskScore) -> dict[str, Any]:
    """Return the entries of a line of JSON: for each test input two attempts, and their votes."""
    tests = []
    for test in score.inputs:
        first, second = attempts(test)
        entry = {
            "attempt_1": first,
            "attempt_2": second,
            "votes": [_votes(test, grid) for grid in (first, second)],
            "of": test.predictions,
        }
        tests.append(entry | ({"solved": test.solved(2)} if test.answer.size else {}))
    return {"name": score.task.task_id, "tests": tests}


def format_attempts(score: TaskScore, width: int = 80, coloured: bool = False) -> str:
    """Show each test input of a task beside the attempts at it, and the votes for them below."""
    return "\n\n".join(
        f"{printable(score.task.task_id)}, test input {number}\n{_format_input(test, width, coloured)}"
        for number, test in enumerate(score.inputs, start=1)
    )


def _format_input(test: InputScore, width: int, coloured: bool) -> str:
    lines = []
    for number, grid in enumerate(attempts(test), start=1):
        shown = {"inputs": _tokens(test.input), "preds": _tokens(np.array(grid, np.uint8))}
        if test.answer.size:
            shown["labels"] = _tokens(test.answer)
        verdict = None if test.answer.size else ""
        boards = format_puzzle(shown, _ARC, width=width, coloured=coloured, verdict=verdict)
        lines.append(f"{boards}\nattempt {number}: {_votes(test, grid)} of {test.predictions} votes")
    return "\n".join(lines)


def _votes(test: InputScore, grid: list[list[int]]) -> int:
    """Count the votes for an attempt; of a first candidate that is no grid, and so no attempt, they are another's."""
    return next((candidate.votes for candidate in test.candidates if candidate.grid.tolist() == grid), 0)


def _tokens(grid: np.ndarray) -> np.ndarray:
    """Lay a grid on a board: tokens int32 `[900]`."""
    corner = np.zeros(1, np.int64)
    return place_grids(grid[None], corner, corner)[0].astype(np.int32)
