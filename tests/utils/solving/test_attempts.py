"""The two attempts at a test input, as text and as JSON: each with the votes that are its own."""

from __future__ import annotations

import json

import numpy as np

from dataset.arc_tasks import Task
from tests.helpers.arc_data import RIGHT, WORSE, WRONG, Grid
from utils.arc.predictions import encode_grid
from utils.arc.scoring import InputScore, TaskScore, count_votes, score_input
from utils.solving.attempts import arc_record, format_attempts

INPUT: Grid = [[1, 0]]
NOTHING: Grid = []


def of_input(answers: list[Grid], answer: Grid = RIGHT) -> InputScore:
    """The score of a test input of which each answer has a vote."""
    grids = [
        np.array(grid, np.uint8).reshape(len(grid), -1) if grid else np.zeros((0, 0), np.uint8) for grid in answers
    ]
    truth = np.array(answer, np.uint8) if answer else np.zeros((0, 0), np.uint8)
    return score_input(
        (np.array(INPUT, np.uint8), truth), count_votes(list(map(encode_grid, grids)), np.zeros(len(grids)))
    )


def of_task(*tests: InputScore) -> TaskScore:
    return TaskScore(Task("t", [], [(test.input, test.answer) for test in tests], is_evaluation=True), list(tests))


def test_each_attempt_has_its_own_votes() -> None:
    """Votes for no grid at all would be shown as votes for the first attempt."""
    plain = of_input([WRONG, RIGHT, WRONG, WORSE])
    empty_first = of_input([NOTHING, NOTHING, NOTHING, WRONG, WRONG, RIGHT])
    only_one = of_input([WRONG, WRONG])
    none = of_input([NOTHING], answer=NOTHING)
    record = json.loads(json.dumps(arc_record(of_task(plain, empty_first, only_one, none))))
    assert record["name"] == "t"
    assert record["tests"] == [
        {"attempt_1": WRONG, "attempt_2": RIGHT, "votes": [2, 1], "of": 4, "solved": True},
        {"attempt_1": WRONG, "attempt_2": RIGHT, "votes": [2, 1], "of": 6, "solved": False},  # by the published rule
        {"attempt_1": WRONG, "attempt_2": WRONG, "votes": [2, 2], "of": 2, "solved": False},
        {"attempt_1": [[0]], "attempt_2": [[0]], "votes": [0, 0], "of": 1},
    ]


def test_attempts_stand_beside_the_puzzle() -> None:
    """A right answer would not be told from a wrong one, or one be called wrong of which nobody knows the answer."""
    text = format_attempts(of_task(of_input([WRONG, RIGHT, WRONG]), of_input([WORSE], answer=NOTHING)), width=120)
    known, unknown = text.split("\n\n")
    assert known.startswith("t, test input 1\n")
    assert "attempt 1: 2 of 3 votes" in known
    assert "attempt 2: 1 of 3 votes" in known
    assert [line.split()[-1] for line in known.splitlines() if line.startswith("puzzle")] == ["cells", "right"]
    assert unknown.startswith("t, test input 2\n")
    assert unknown.count("attempt 1: 1 of 1 votes") == unknown.count("attempt 2: 1 of 1 votes") == 1
    assert "truth" in known
    assert "truth" not in unknown
    assert "right" not in unknown
    assert "wrong" not in unknown
