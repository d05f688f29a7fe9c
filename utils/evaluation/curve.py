"""Solved puzzles against the compute spent on them: what a search would have found with fewer samples."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError, shown


class Found(NamedTuple):
    """What has been found of a puzzle, or the sums and means of it over puzzles.

    Attributes:
        exact: the chosen answer is the label.
        verified: the chosen answer keeps to the rules.
        any_exact: one of the answers is the label: what a judge that knew it would choose.
        row_steps: outer steps that the samples took.
    """

    exact: float = 0.0
    verified: float = 0.0
    any_exact: float = 0.0
    row_steps: float = 0.0


class Curve:
    """What has been found of all puzzles, for each number of samples that a puzzle might have taken at most.

    Args:
        changes: what sample n, n from 0, has changed in the sums of `Found`, float64 `[samples, 4]`.
        puzzles: their number.
    """

    def __init__(self, changes: np.ndarray, puzzles: int = 0):
        self.changes, self.puzzles = changes, puzzles

    def add(self, number: int, before: Found, after: Found) -> None:
        """Add what sample `number` of a puzzle has changed."""
        self.puzzles += number == 0
        self.changes[number] += np.subtract(after, before)

    def points(self) -> dict[int, Found]:
        """Return the means over puzzles by the number of samples: 1, 2, 4, … and the last."""
        sums = np.cumsum(self.changes, axis=0) / max(1, self.puzzles)
        samples = len(sums)
        numbers = [2**power for power in range(samples.bit_length()) if 2**power < samples] + [samples]
        return {number: Found(*sums[number - 1].tolist()) for number in numbers}


def format_curve(curve: Curve, has_rules: bool) -> str:
    """Format a table: samples, outer steps for each puzzle, and the share of puzzles that is solved with them."""
    columns = ["samples", "row_steps", "exact", *(["verified"] if has_rules else []), "any_exact"]
    lines = ["  ".join(name.rjust(9) for name in columns)]
    for number, found in curve.points().items():
        values = [f"{getattr(found, name):.4f}" for name in columns[2:]]
        lines.append("  ".join(text.rjust(9) for text in [str(number), f"{found.row_steps:.2f}", *values]))
    return "\n".join(lines)


def require_plots(path: Path) -> None:
    """Raise UserError, before an evaluation of hours, if the package for plots is missing or the path is a folder."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("curve needs matplotlib: pip install -r requirements-notebook.txt") from error
    if path.is_dir():
        raise UserError(f"curve = {shown(str(path))} is a folder, expected a file to write, such as curve.png")


def plot_curve(curve: Curve, path: Path, title: str) -> None:
    """Plot the share of solved puzzles against the outer steps for each puzzle, as a PNG; folders above it are made."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = curve.points()
    steps = [found.row_steps for found in points.values()]
    figure = Figure(figsize=(6, 4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel="outer steps for each puzzle", ylabel="share of puzzles")
    for name, style in (("exact", "o-"), ("verified", "s--"), ("any_exact", "^:")):
        axes.plot(steps, [getattr(found, name) for found in points.values()], style, label=name)
    for number, found in points.items():
        axes.annotate(f"{number}", (found.row_steps, found.exact), (0, -12), textcoords="offset points", ha="center")
    axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", format="png")
