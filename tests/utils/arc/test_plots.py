"""Pictures of ARC tasks: the right cells in the right place and colour, and the right words above them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.helpers.arc_data import RIGHT, WRONG, ArcFiles, Row, augmented, plain, task
from utils.arc.plots import draw_attempts, draw_demonstrations, draw_grid
from utils.arc.scoring import TaskScore, score_predictions
from utils.evaluation.puzzle_kinds import ARC_COLOURS

INPUT, OTHER_INPUT = [[1, 0]], [[2, 0, 7]]


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    mpl.use("Agg")
    yield
    plt.close("all")


@pytest.fixture
def score(tmp_path: Path) -> TaskScore:
    rows = [augmented("a", k, range(10), INPUT, WRONG) for k in range(3)]
    rows += [augmented("a", k, range(10), INPUT, RIGHT) for k in range(3, 5)]
    rows += [Row("a", plain("a", OTHER_INPUT, RIGHT).inputs, np.zeros(900))]
    files = ArcFiles(tmp_path, {"a": task((INPUT, RIGHT), (OTHER_INPUT, RIGHT))})
    return score_predictions([files.predict(rows)], files.data).tasks["a"]


def cells(axes: Axes) -> list[list[int]]:
    """The grid that a panel shows."""
    (mesh,) = axes.collections
    return np.asarray(mesh.get_array()).tolist()


def test_a_grid_is_drawn_cell_by_cell_in_the_palette() -> None:
    """A picture that is turned, or in other colours than on arcprize.org, misleads whoever looks for the mistake."""
    grid = np.arange(10).reshape(2, 5)
    figure = Figure(figsize=(5, 2), dpi=20)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_grid(axes, grid, "")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # 40 x 100, 20 a cell
    shown = ["#" + pixels[20 * row + 10, 20 * col + 10].tobytes().hex() for row in range(2) for col in range(5)]
    assert shown == list(ARC_COLOURS)


def test_attempts_stand_beside_input_and_answer(score: TaskScore) -> None:
    """Titles say what was right and how sure the votes were; missing and empty attempts have panels without cells."""
    figure = draw_attempts(score)
    assert figure.get_suptitle() == "a: not solved with 2 attempts"
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        *("input", "answer", "attempt 1: wrong\n3 of 5 votes", "attempt 2: right\n2 of 5 votes"),
        *("input", "answer", "attempt 1: no grid\n1 of 1 votes", "attempt 2: none"),
    ]
    assert [cells(axes) for axes in figure.axes[:6]] == [INPUT, RIGHT, WRONG, RIGHT, OTHER_INPUT, RIGHT]
    assert not any(axes.collections for axes in figure.axes[6:])


def test_demonstrations_stand_in_pairs(score: TaskScore) -> None:
    figure = draw_demonstrations(score)
    assert [(axes.get_title(), cells(axes)) for axes in figure.axes] == [("input 1", [[0]]), ("output 1", [[1]])]
