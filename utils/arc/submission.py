"""Files of an ARC score: the ARC Prize's submission with two attempts, and a table of all tasks."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from common.errors import UserError
from common.files import replacing
from utils.arc.scoring import PASS_K, ArcScore, Candidate, InputScore, TaskScore

NO_ANSWER = [[0]]  # the attempt where there are no predictions: a smallest grid
SHOWN_CANDIDATES = 3

Grid = list[list[int]]


def attempts(result: InputScore) -> tuple[Grid, Grid]:
    """Choose the two best candidates for a test input.

    A submission can't hold empty grids: they are skipped. A single candidate is given twice.

    Args:
        result: the test input's candidates.

    Returns:
        Two grids, each a list of rows of colours 0 to 9.
    """
    grids = [candidate.grid.tolist() for candidate in result.candidates if candidate.grid.size][:2] or [NO_ANSWER]
    return grids[0], grids[-1]


def write_submission(score: ArcScore, path: Path) -> None:
    """Write the ARC Prize's `submission.json`: task id -> for each test input its two attempts, in order.

    Args:
        score: of all tasks.
        path: the file to write.

    Raises:
        UserError: if `path` is a folder.
    """
    submission = {
        task_id: [dict(zip(("attempt_1", "attempt_2"), attempts(result), strict=True)) for result in task.inputs]
        for task_id, task in score.tasks.items()
    }
    _write(path, json.dumps(submission))


def write_table(score: ArcScore, path: Path) -> None:
    """Write a CSV table with a row for each task.

    Columns: `task`; `test_inputs`; `solved_at_<K>`, 1 or 0, empty for a task without answers; `predictions`,
    votes in all. Then, with an entry for each test input, joined by `;`: `answer_rank`, the answer's place among the
    candidates, and `answer_votes` (empty where nothing voted for it); `candidates`, how many there are; and for the
    first three `votes_<i>`, `share_<i>` (of the test input's votes) and `q_halt_<i>` (mean halting probability).

    Args:
        score: of all tasks.
        path: the file to write.

    Raises:
        UserError: if `path` is a folder.
    """
    names = ["task", "test_inputs", *(f"solved_at_{k}" for k in PASS_K), "predictions"]
    names += ["answer_rank", "answer_votes", "candidates"]
    names += [f"{name}_{i}" for i in range(1, SHOWN_CANDIDATES + 1) for name in ("votes", "share", "q_halt")]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(names)
    table.writerows(_row(task) for task in score.tasks.values())
    _write(path, text.getvalue())


def _row(task: TaskScore) -> list[str]:
    of_inputs = [_columns(result) for result in task.inputs]
    solved = [str(int(task.solved(k))) if task.task.has_answers else "" for k in PASS_K]
    predictions = sum(result.predictions for result in task.inputs)
    joined = [";".join(entries) for entries in zip(*of_inputs, strict=True)]
    return [task.task.task_id, str(len(task.inputs)), *solved, str(predictions), *joined]


def _columns(result: InputScore) -> list[str]:
    answer = result.candidates[result.rank - 1] if result.rank is not None else None
    columns = [str(result.rank or ""), str(answer.votes if answer else ""), str(len(result.candidates))]
    first: list[Candidate | None] = [*result.candidates[:SHOWN_CANDIDATES]]
    for candidate in first + [None] * (SHOWN_CANDIDATES - len(first)):
        if candidate is None:
            columns += ["", "", ""]
        else:
            columns += [str(candidate.votes), f"{result.share(candidate):.4f}", f"{candidate.mean_q_halt:.4f}"]
    return columns


def _write(path: Path, text: str) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
