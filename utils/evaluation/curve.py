"""Solved puzzles against the compute spent on them: what a search would have found with fewer samples."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError, shown


class Found(NamedTuple):
    """What has been found of a puzzle, or the sums and means of it over puzzles.

    Attributes:
        row_steps: outer steps that the samples took.
        exact: the chosen answer is the label.
        verified: the chosen answer keeps to the rules.
        any_exact: one of the answers is the label: what a judge that knew it would choose.
    """

    row_steps: float = 0.0
    exact: float = 0.0
    verified: float = 0.0
    any_exact: float = 0.0


class Curve:
    """What has been found of the puzzles that have a label, for each number of samples that one might take at most.

    Args:
        has_rules: whether `verified` means anything.
        changes: what sample n, n from 0, has changed in the sums of `Found`, float64 `[samples, 4]`.
        puzzles: their number.
    """

    def __init__(self, has_rules: bool, changes: np.ndarray, puzzles: int = 0):
        self.has_rules, self.changes, self.puzzles = has_rules, changes, puzzles

    def add(self, number: int, before: Found, after: Found) -> None:
        """Add what sample `number` of a puzzle has changed."""
        self.puzzles += number == 0
        self.changes[number] += np.subtract(after, before)

    def points(self) -> dict[int, dict[str, float]]:
        """Return the means over puzzles of `row_steps`, `exact`, and so on, for 1, 2, 4, … samples and all."""
        sums = np.cumsum(self.changes, axis=0) / max(1, self.puzzles)
        samples = len(sums)
        numbers = [2**power for power in range(samples.bit_length()) if 2**power < samples] + [samples]
        names = [name for name in Found._fields if self.has_rules or name != "verified"]
        return {
            number: {name: float(sums[number - 1, Found._fields.index(name)]) for name in names} for number in numbers
        }


def format_curve(curve: Curve) -> str:
    """Format a table: samples, outer steps for each puzzle, and the share of puzzles that is solved with them."""
    points = curve.points()
    columns = ["samples", *points[1]]
    lines = ["  ".join(name.rjust(9) for name in columns)]
    for number, found in points.items():
        values = [f"{value:.2f}" if name == "row_steps" else f"{value:.4f}" for name, value in found.items()]
        lines.append("  ".join(text.rjust(9) for text in [str(number), *values]))
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
    steps = [found["row_steps"] for found in points.values()]
    figure = Figure(figsize=(6, 4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=title, xlabel="outer steps for each puzzle", ylabel="share of puzzles")
    for name, style in (("exact", "o-"), ("verified", "s--"), ("any_exact", "^:")):
        if name in points[1]:
            axes.plot(steps, [found[name] for found in points.values()], style, label=name)
    for number, found in points.items():
        place = found["row_steps"], found["exact"]
        axes.annotate(f"{number}", place, (0, -12), textcoords="offset points", ha="center")
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [f"{step:.3g}" for step in steps])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", format="png")
