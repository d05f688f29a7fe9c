"""Solve puzzles with a trained model: python solve.py checkpoint=<step folder, file or hub id> puzzle=<…> [key=value …]

A puzzle is typed, or lies in a file; no data set is needed. From Python:

    from solve import load

    model = load("checkpoints/demo")
    print(model.solve("..4.2. …"))
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import utils.linux_cpu  # noqa: F401  # before mlx: on Linux it brings a fast BLAS

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from common.errors import UserError, one_line
from common.files import HomePath
from common.memory_errors import memory_advice
from dataset.arc_grids import is_arc
from dataset.puzzle_text import read_arc_tasks, read_puzzles
from utils.arc.report import format_score
from utils.arc.scoring import score_tasks
from utils.arc.submission import write_submission
from utils.command_line import parse
from utils.evaluation.thinking import Thinking
from utils.solving.arc import Adaptation, ArcSolver
from utils.solving.attempts import arc_record, format_attempts
from utils.solving.film import check_film, write_film
from utils.solving.solver import BATCH_SIZE, Solver, load

__all__ = ["load"]


class SolveConfig(Thinking, Adaptation):
    """The keys of solve.py, besides those of `Thinking` and `Adaptation`."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # checkpoint=5

    checkpoint: HomePath = Field(
        description="a step folder, a run's folder (its newest step), a file, or owner/name on the Hugging Face hub"
    )
    puzzle: str = Field(
        description="the puzzle as text: Sudoku with . or 0 for blanks, mazes over '# SG', ARC tasks as JSON; \\n ends "
        "a row; or a file of puzzles: .txt, .csv in the builders' format, .json; or a folder of ARC tasks; or - for "
        "standard input"
    )
    data_path: HomePath | None = Field(
        default=None, description="a data set of such puzzles, for a checkpoint that doesn't record what it is for"
    )
    puzzle_name: str | None = Field(
        default=None, description="which of the named puzzles of your own data set it is; null: none"
    )
    as_json: bool = Field(default=False, alias="json", description="print a line of JSON for each puzzle")
    film: HomePath | None = Field(
        default=None,
        description="a folder to make, with the answer after every outer step, for puzzle_visualizer.html",
    )
    batch_size: int = Field(default=BATCH_SIZE, ge=1, description="tries at a time")
    forward_dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        default=None, description="bfloat16, float16 or float32; null: as trained"
    )
    seed: int = Field(default=0, ge=0, lt=2**64, description="of the further tries")
    submission: HomePath | None = Field(
        default=None, description="ARC: the ARC Prize's file to write, with two attempts for each test input"
    )


def solve_boards(solver: Solver, config: SolveConfig) -> bool:
    """Solve Sudoku, mazes or puzzles of one's own, and print the solutions. Returns whether all are solved."""
    if config.submission is not None:
        raise UserError(f"submission is for ARC tasks, and {solver.source.name} solves other puzzles; leave it out")
    if config.adapt_steps:
        raise UserError(f"adapt_steps is for ARC tasks, and {solver.source.name} solves other puzzles; leave it out")
    puzzles = read_puzzles(config.puzzle, solver.metadata, sys.stdin)
    if config.film is not None:
        check_film(Path(config.film))
    width, coloured = terminal()
    if config.puzzle_name is None and solver.metadata.num_puzzle_identifiers > 1:
        print("this model was trained on named puzzles; puzzle_name=… tells which one it is given", file=sys.stderr)
    solutions = solver.solve_all(
        puzzles,
        config,
        puzzle_name=config.puzzle_name,
        seed=config.seed,
        batch_size=config.batch_size,
        film=config.film is not None,
    )
    solved, filmed = 0, []
    for solution in solutions:
        if config.as_json:
            print(json.dumps(solution.record(), ensure_ascii=False), flush=True)
        else:
            title = f"{solution.puzzle.name}\n" if len(puzzles) > 1 else ""
            print(title + solution.format(width, coloured), end="\n\n", flush=True)
        solved += solution.is_solved
        if config.film is not None:
            filmed.append(solution)
    if len(puzzles) > 1:
        print(f"{solved} of {len(puzzles)} solved", file=sys.stderr)
    if config.film is not None:
        write_film(filmed, Path(config.film))
        print(f"film: open puzzle_visualizer.html, and choose the folder {config.film}", file=sys.stderr)
    return solved == len(puzzles)


def solve_arc(solver: Solver, config: SolveConfig) -> bool:
    """Answer ARC tasks, and print or write two attempts for each. Returns whether none is known to be wrong."""
    if config.film is not None:
        raise UserError("film is for single boards, and an ARC task has many copies that vote; leave it out")
    if config.submission is not None and Path(config.submission).is_dir():
        raise UserError(f"{config.submission} is a folder; name the file to write")
    tasks = read_arc_tasks(config.puzzle, sys.stdin)
    arc = ArcSolver(solver, config)
    unknown = sum(not arc.knows(task) for task in tasks)
    if unknown < len(tasks) and config.adapt_steps:
        known = len(tasks) - unknown
        print(f"{known} of {len(tasks)} tasks are known to the model by name, and not trained on", file=sys.stderr)
    if unknown and not config.adapt_steps and solver.head.model.puzzle_emb is not None:
        print(
            f"{unknown} of {len(tasks)} tasks have no puzzle embedding of their own, and get the mean of all others: "
            "it says nothing of a task's rule, so expect next to nothing; adapt_steps=200 trains one on the "
            "demonstrations",
            file=sys.stderr,
        )
    scores = {}
    for score in arc.solve_all(tasks, config, seed=config.seed, batch_size=config.batch_size):
        scores[score.task.task_id] = score
        if config.as_json:
            print(json.dumps(arc_record(score)), flush=True)
        elif config.submission is None:
            print(format_attempts(score, *terminal()), end="\n\n", flush=True)
    votes = sum(test.predictions for score in scores.values() for test in score.inputs)
    total = score_tasks(scores, votes, [])
    if config.submission is not None:
        write_submission(total, Path(config.submission))
        print(f"submission: {config.submission}", file=sys.stderr)
    if total.pass_at:
        print(format_score(total), file=sys.stderr)
    return all(score.solved(2) for score in scores.values() if score.task.has_answers)


def terminal() -> tuple[int, bool]:
    """Return the columns of the terminal, and whether it shows colours."""
    return shutil.get_terminal_size().columns, sys.stdout.isatty() and "NO_COLOR" not in os.environ


@one_line
def main() -> None:
    """Run the command line. The exit status is 1 if a puzzle stays unsolved."""
    required = {"checkpoint": "<step folder, file or hub id>", "puzzle": "<text, file or ->"}
    config = parse(sys.argv[1:], SolveConfig, "python solve.py", verbatim=["puzzle"], **required)
    solver = load(config.checkpoint, data_path=config.data_path, forward_dtype=config.forward_dtype)
    try:
        smaller = config.batch_size // 2
        with memory_advice(f"try batch_size={smaller}" if smaller else "even batch_size=1 is too much"):
            solved = solve_arc(solver, config) if is_arc(solver.metadata) else solve_boards(solver, config)
    except UserError as error:
        raise error if solver.note is None else UserError(f"{error}; {solver.note}") from error
    if solver.note is not None:
        print(solver.note, file=sys.stderr)
    sys.exit(0 if solved else 1)


if __name__ == "__main__":
    main()
