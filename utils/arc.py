"""Score saved ARC predictions: python -m utils.arc predictions=<folder or pattern> [key=value …]

    python -m utils.arc "predictions=checkpoints/<project>/<run>/step_<N>_all_preds.*" submission=submission.json

Prints pass@K as a table and as one line of JSON; writes the ARC Prize's submission and a table of all tasks if asked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from utils import errors
from utils.arc_predictions import find_folders
from utils.arc_scoring import ArcScore, TaskScore, score_predictions
from utils.arc_submission import write_submission, write_table
from utils.command_line import parse_arc_config
from utils.config import read_trained_config


def format_score(score: ArcScore) -> str:
    """A small table of pass@K, under what was scored and any notes on it."""
    inputs = sum(len(task.inputs) for task in score.tasks.values())
    lines = [f"ARC: {len(score.tasks):,} tasks, {inputs:,} test inputs, {score.predictions:,} predictions"]
    lines += [f"  {note}" for note in score.notes]
    lines += [f"  {f'pass@{k}':<9}  {rate:.4f}" for k, rate in score.pass_at.items()]
    return "\n".join(lines)


def format_votes(score: TaskScore, candidates: int = 5) -> str:
    """How the votes for a task fell: a line for each of the first candidates of each test input."""
    lines = []
    for number, result in enumerate(score.inputs, start=1):
        rank = "not among the candidates" if result.rank is None else f"candidate {result.rank}"
        lines.append(
            f"{score.task.task_id}, test input {number}: {result.predictions:,} predictions, "
            f"{len(result.candidates):,} candidates, the answer is {rank}"
        )
        for place, candidate in enumerate(result.candidates[:candidates], start=1):
            size = "x".join(map(str, candidate.grid.shape)) if candidate.grid.size else "no grid"
            mark = "  answer" if place == result.rank else ""
            lines.append(
                f"  {place}. {candidate.votes:>5,} votes  {result.share(candidate):6.1%}  "
                f"q_halt {candidate.mean_q_halt:.3f}  {size}{mark}"
            )
    return "\n".join(lines)


@errors.one_line
def main() -> None:
    """Score what the command line names."""
    config = parse_arc_config(sys.argv[1:])
    folders = find_folders(config.predictions)
    score = score_predictions(folders, config.data_path or read_trained_config(folders[0].parent).data_path)
    if config.submission is not None:
        write_submission(score, Path(config.submission))
    if config.table is not None:
        write_table(score, Path(config.table))
    print(format_score(score))
    record = {"predictions": [str(folder) for folder in folders], "num_tasks": len(score.tasks)}
    print(json.dumps(record | {f"pass@{k}": rate for k, rate in score.pass_at.items()}), flush=True)


if __name__ == "__main__":
    main()
