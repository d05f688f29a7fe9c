"""The two files that are written from an ARC score: what the ARC Prize's scorer and a spreadsheet read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from tests.helpers.arc_data import RIGHT, WORSE, WRONG, ArcFiles, Row, augmented, plain, task
from utils.arc.scoring import ArcScore, score_predictions
from utils.arc.submission import write_submission, write_table

INPUT, OTHER_INPUT = [[1, 0]], [[2, 0, 7]]


def small_score(tmp_path: Path) -> ArcScore:
    """Task a: three answers to its first input, one to its second. Task b: mostly no grid at all. Task c: nothing."""
    tasks = {"a": task((INPUT, RIGHT), (OTHER_INPUT, WORSE)), "b": task((INPUT, RIGHT)), "c": task((INPUT, RIGHT))}
    rows = [augmented("a", k, range(10), INPUT, WRONG) for k in range(3)]
    rows += [augmented("a", k, range(10), INPUT, RIGHT, 1.0) for k in range(3, 5)]
    rows += [augmented("a", 5, range(10), INPUT, WORSE), augmented("a", 6, range(10), OTHER_INPUT, WORSE, -1.0)]
    no_grid = np.zeros(900, np.uint8)
    rows += [Row(f"b_t{k}_0123456789", augmented("b", k, range(10), INPUT, RIGHT).inputs, no_grid) for k in range(1, 4)]
    rows += [plain("b", INPUT, WRONG)]
    files = ArcFiles(tmp_path, tasks)
    return score_predictions([files.predict(rows)], files.data)


def test_submission_holds_two_attempts_for_every_test_input(tmp_path: Path) -> None:
    """The ARC Prize refuses a file in which a task, a test input or an attempt is missing or no grid."""
    path = tmp_path / "new folder" / "submission.json"
    write_submission(small_score(tmp_path), path)
    assert json.loads(path.read_text()) == {
        "a": [{"attempt_1": WRONG, "attempt_2": RIGHT}, {"attempt_1": WORSE, "attempt_2": WORSE}],
        "b": [{"attempt_1": WRONG, "attempt_2": WRONG}],
        "c": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
    }
    assert [file.name for file in path.parent.iterdir()] == ["submission.json"]


def test_table_says_for_every_task_how_its_votes_fell(tmp_path: Path) -> None:
    """Whoever looks for near misses reads ranks and shares here."""
    path = tmp_path / "table.csv"
    write_table(small_score(tmp_path), path)
    with open(path, newline="") as file:
        table = {row["task"]: row for row in csv.DictReader(file)}
    assert list(table) == ["a", "b", "c"]
    expected = {
        "test_inputs": "2",
        "solved_at_1": "0",
        "solved_at_2": "1",
        "solved_at_1000": "1",
        "predictions": "7",
        "answer_rank": "2;1",
        "answer_votes": "2;1",
        "candidates": "3;1",
        "votes_1": "3;1",
        "share_1": "0.5000;1.0000",
        "q_halt_1": "0.5000;0.2689",
        "votes_2": "2;",
        "q_halt_2": "0.7311;",
        "votes_3": "1;",
        "share_3": "0.1667;",
    }
    assert {name: table["a"][name] for name in expected} == expected
    assert [table["b"][name] for name in ("answer_rank", "answer_votes", "votes_1", "votes_2")] == ["", "", "3", "1"]
    assert [table["c"][name] for name in ("predictions", "candidates", "votes_1", "solved_at_1000")] == [
        "0",
        "0",
        "",
        "0",
    ]
