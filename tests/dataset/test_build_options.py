"""The command that a data set is built with: recorded so that it can be given again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from dataset.build_arc_dataset import ArcOptions
from dataset.build_maze_dataset import MazeOptions
from dataset.build_options import BuildOptions
from dataset.build_pairs_dataset import PairsOptions
from dataset.build_sudoku_dataset import SudokuOptions


def test_the_recorded_command_does_not_overwrite() -> None:
    """The same puzzles would have other bytes; and who repeats the command elsewhere would lose a data set."""
    assert ArcOptions(overwrite=True).command("build_arc_dataset.py") == "python dataset/build_arc_dataset.py"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("build_sudoku_dataset", SudokuOptions()),
        (
            "build_sudoku_dataset",
            SudokuOptions(source_repo="my 'puzzles'; $HOME", num_aug=3, min_difficulty=-2, seed=7),
        ),
        ("build_maze_dataset", MazeOptions(aug=True, subsample_size=5)),
        ("build_pairs_dataset", PairsOptions(input_file="my pairs.csv", test_fraction=0.25, kind="words")),
        ("build_arc_dataset", ArcOptions(dataset_dirs=["a b", "c"], num_aug=0)),
    ],
)
def test_the_recorded_command_gives_the_same_options(
    script: str, options: BuildOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A user who is told to build a data set again would build another one."""
    module: Any = sys.modules[f"dataset.{script}"]
    command = options.command(module.__file__)
    given: list[BuildOptions] = []
    monkeypatch.setattr(module, "build", lambda parsed: given.append(parsed) or ["built"])
    python, file, *arguments = shlex.split(f"{command} --output-dir {options.output_dir}")
    assert (python, file) == ("python", f"dataset/{script}.py")
    monkeypatch.setattr(sys, "argv", [file, *arguments])
    module.cli()
    assert [parsed.model_dump() for parsed in given] == [options.model_dump()]
