"""An ARC score as text: pass@K, and the votes for a task."""

from __future__ import annotations

from utils.arc.scoring import ArcScore, TaskScore


def format_score(score: ArcScore) -> str:
    """Format a table of pass@K, a column for each convention, below the numbers of tasks and predictions and the notes.

    Where no task has answers there is no table.
    """
    inputs = sum(len(task.inputs) for task in score.tasks.values())
    lines = [f"ARC: {len(score.tasks):,} tasks, {inputs:,} test inputs, {score.predictions:,} predictions"]
    lines += [f"  {note}" for note in score.notes]
    if score.pass_at:
        lines.append(f"  {'':<9}  {'tasks':>7}  {'outputs':>7}")
    lines += [f"  {f'pass@{k}':<9}  {rate:7.4f}  {score.pass_at_outputs[k]:7.4f}" for k, rate in score.pass_at.items()]
    return "\n".join(lines)


def format_votes(score: TaskScore, candidates: int = 5) -> str:
    """Format the votes for a task: a line for each of the first candidates of each test input."""
    lines = []
    for number, result in enumerate(score.inputs, start=1):
        rank = "not among the candidates" if result.rank is None else f"candidate {result.rank}"
        rank = rank if result.answer.size else "not known"
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
