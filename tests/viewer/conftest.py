"""A browser for the viewer's tests, and folders for it that the real builders and evaluate.py wrote."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataset import build_arc_dataset, build_maze_dataset, build_mini_sudoku_dataset, build_sudoku_dataset
from tests.helpers.arc_source import make_arc
from tests.helpers.browser import browser_or_skip
from tests.helpers.sources import make_source, maze_rows, write_csv
from tests.helpers.viewer import Folders, Viewer, train_and_evaluate


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    with browser_or_skip() as browser:
        yield browser


@pytest.fixture
def viewer(browser: Any) -> Iterator[Viewer]:
    viewer = Viewer(browser)
    yield viewer
    viewer.close()


# --------------------------------------------------------------------------------------------- data sets and a real run


@pytest.fixture(scope="package")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One data set of each kind."""
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "mazes").mkdir()
    for split, n in (("train", 6), ("test", 4)):
        write_csv(folder / "mazes" / f"{split}.csv", maze_rows(n, seed=n))
    make_arc(folder / "tasks", training=1, evaluation=2)
    out = {kind: folder / kind for kind in ("sudoku", "mini-sudoku", "maze", "arc")}
    source = str(make_source(folder / "sudokus"))
    sudoku = build_sudoku_dataset
    sudoku.build(sudoku.SudokuOptions(source_repo=source, output_dir=str(out["sudoku"]), num_aug=3))
    mini = build_mini_sudoku_dataset
    mini.build(mini.MiniSudokuOptions(output_dir=str(out["mini-sudoku"]), num_train=32, num_test=24, blanks=9))
    maze = build_maze_dataset
    maze.build(maze.MazeOptions(source_repo=str(folder / "mazes"), output_dir=str(out["maze"])))
    arc = build_arc_dataset
    arc.build(arc.ArcOptions(dataset_dirs=[str(folder / "tasks")], output_dir=str(out["arc"]), num_aug=2))
    return out


@pytest.fixture(scope="package")
def evaluated(tmp_path_factory: pytest.TempPathFactory, datasets: dict[str, Path]) -> dict[str, Folders]:
    """Data sets with predictions of a real evaluation. The models have learnt nothing: their mistakes are plenty."""
    kinds = ("mini-sudoku", "maze", "arc")
    folder = tmp_path_factory.mktemp("evaluated")
    with ThreadPoolExecutor() as pool:
        found = pool.map(partial(train_and_evaluate, folder), (datasets[kind] for kind in kinds))
        return {kind: Folders(datasets[kind], predictions) for kind, predictions in zip(kinds, found, strict=True)}
