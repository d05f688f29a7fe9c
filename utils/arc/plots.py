"""Pictures of ARC tasks in the usual palette, for the notebook; needs matplotlib."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from utils.arc.scoring import TaskScore
from utils.evaluation.puzzle_kinds import ARC_COLOURS

_CELL_LINES = "#555555"
_PANEL_INCHES = 2.4


def draw_grid(axes: Axes, grid: np.ndarray, title: str) -> None:
    """Draw a grid of colours `[rows, cols]`; an empty one leaves an empty panel."""
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    if not grid.size:
        return
    rows, cols = grid.shape
    axes.pcolormesh(grid, cmap=ListedColormap(ARC_COLOURS), vmin=0, vmax=9, edgecolors=_CELL_LINES, linewidth=0.4)
    axes.set_xlim(0, cols)
    axes.set_ylim(rows, 0)  # row 0 on top
    axes.set_aspect("equal")


def draw_demonstrations(score: TaskScore) -> Figure:
    """Draw the demonstration pairs of a task: inputs above, outputs below."""
    pairs = score.task.train
    figure, panels = plt.subplots(
        2, len(pairs), squeeze=False, figsize=(_PANEL_INCHES * len(pairs), 2 * _PANEL_INCHES), layout="constrained"
    )
    figure.suptitle(f"{score.task.task_id}: demonstrations", fontsize=10)
    for column, pair in enumerate(pairs):
        for axes, grid, name in zip(panels[:, column], pair, ("input", "output"), strict=True):
            draw_grid(axes, grid, f"{name} {column + 1}")
    return figure


def draw_attempts(score: TaskScore, attempts: int = 2) -> Figure:
    """Draw a row for each test input: input, answer, and the best candidates with their votes."""
    figure, panels = plt.subplots(
        len(score.inputs),
        2 + attempts,
        squeeze=False,
        figsize=(_PANEL_INCHES * (2 + attempts), _PANEL_INCHES * len(score.inputs)),
        layout="constrained",
    )
    verdict = "solved" if score.solved(attempts) else "not solved" if score.task.has_answers else "no answer known"
    figure.suptitle(f"{score.task.task_id}: {verdict} with {attempts} attempts", fontsize=10)
    for row, result in zip(panels, score.inputs, strict=True):
        draw_grid(row[0], result.input, "input")
        draw_grid(row[1], result.answer, "answer")
        for place, axes in enumerate(row[2:], start=1):
            if place > len(result.candidates):
                draw_grid(axes, np.empty((0, 0)), f"attempt {place}: none")
                continue
            candidate = result.candidates[place - 1]
            right = "right" if place == result.rank else "wrong" if candidate.grid.size else "no grid"
            votes = f"{candidate.votes:,} of {result.predictions:,} votes"
            draw_grid(axes, candidate.grid, f"attempt {place}: {right}\n{votes}")
    return figure
