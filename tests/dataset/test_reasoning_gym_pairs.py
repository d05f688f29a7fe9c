"""Tasks of reasoning-gym as pairs: read rightly from its entries, and trained and evaluated like any other puzzles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
import pretrain
from common.errors import UserError
from dataset import build_pairs_dataset
from dataset import reasoning_gym_pairs as gym
from dataset.puzzle_dataset import PuzzleDataset
from dataset.sudoku import Board
from tests.helpers.sources import assert_one_line_error, run_script
from tests.helpers.tiny_data import train_arguments

WHY_SKIPPED = (
    "reasoning-gym is an extra: one of its requirements, pycosat, comes as C source alone, and `make test` needs no "
    "compiler. pip install -r requirements-reasoning-gym.txt brings these tests"
)


@pytest.fixture
def reasoning_gym() -> Any:
    return pytest.importorskip("reasoning_gym", reason=WHY_SKIPPED)


# ------------------------------------------------------------------------------------------------ without the package


def test_futoshiki_keeps_its_signs() -> None:
    """Without them, or with one turned round, no answer can be found."""
    constraints = [(0, 0, 0, 1, "<"), (0, 1, 1, 1, ">"), (1, 0, 1, 1, ">"), (0, 0, 1, 0, "<")]
    grids = {"puzzle": [[0, 2], [0, 0]], "solution": [[1, 2], [2, 1]]}
    pair = gym.read_futoshiki({"metadata": {**grids, "constraints": constraints, "board_size": 2}})
    assert ["".join(row) for row in pair["input"]] == ["_<2", "^ v", "_>_"]
    assert ["".join(row) for row in pair["output"]] == ["1<2", "^ v", "2>1"]


def test_a_board_that_stands_in_the_question_alone_is_found() -> None:
    """The example of an empty grid in the question would be taken for the board."""
    entry = {"question": "(An empty grid: [[0,0],[0,0]])\n\n[[0,1],\n [1,1]].", "answer": "[[1,0],[0,0]]"}
    assert gym.read_game_of_life(entry) == {"input": [[0, 1], [1, 1]], "output": [[1, 0], [0, 0]]}


def test_what_a_grid_does_not_tell_is_the_puzzle_s_name() -> None:
    """One input would have several answers, and nothing say which is meant."""
    matrix = {"matrix": [[1, 2], [3, 4]], "solution": [[3, 1], [4, 2]], "num_rotations": 5}
    pair = gym.read_rotated_matrix({"metadata": matrix})
    assert pair == {"input": matrix["matrix"], "output": matrix["solution"], "puzzle": "turn 90"}
    rule = {"task_name": "move_left", "test_example": {"input": [0, 3], "output": [3, 0]}}
    assert gym.read_arc_1d({"metadata": rule}) == {"input": [[0, 3]], "output": [[3, 0]], "puzzle": "move_left"}


def test_settings_are_numbers_where_they_look_so() -> None:
    found = gym.parse_settings(["min_empty=3", "p_zero=0.5", "name=a=b", "wrap=true"])
    assert found == {"min_empty": 3, "p_zero": 0.5, "name": "a=b", "wrap": True}
    with pytest.raises(UserError, match="--settings has 'min_empty', expected key=value"):
        gym.parse_settings(["min_empty"])


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would read a traceback about a module."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-reasoning-gym\.txt"):
        gym.write(gym.GymOptions(task="sudoku", output_file=str(tmp_path / "a.jsonl")))
    assert not list(tmp_path.iterdir())


def test_impossible_requests_are_one_line(tmp_path: Path) -> None:
    """An unknown task would end in a traceback of the package, or a file that somebody needs be lost."""
    (tmp_path / "there").write_text("mine")
    for options, message in (
        ({"task": "chess"}, r"--task is 'chess', expected one of arc_1d, .*, sudoku"),
        ({"task": "sudoku", "size": 0}, "--size is 0, expected at least 1"),
        ({"task": "sudoku", "seed": -1}, "--seed is -1, expected at least 0"),
        ({"task": "sudoku", "output_file": str(tmp_path / "there")}, "there is there already: --overwrite replaces"),
        ({"task": "sudoku", "output_file": str(tmp_path), "overwrite": True}, "is there already"),
    ):
        with pytest.raises(UserError, match=message):
            gym.write(gym.GymOptions(**options))
    assert (tmp_path / "there").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ with it


@pytest.mark.slow
@pytest.mark.usefixtures("reasoning_gym")
@pytest.mark.filterwarnings("ignore:.*randrange:DeprecationWarning")  # before Python's refusal of 2.5
def test_every_task_can_be_built(tmp_path: Path) -> None:
    """A task of the list would end in an error, or in inputs that are their own answers."""
    small = {"futoshiki": ["max_board_size=5"]}
    for task in gym.TASKS:
        file = tmp_path / f"{task}.jsonl"
        gym.write(gym.GymOptions(task=task, size=12, settings=small.get(task), output_file=str(file)))
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == 12
        assert any(row["input"] != row["output"] for row in rows), task
        out = tmp_path / task
        build_pairs_dataset.build(build_pairs_dataset.PairsOptions(input_file=str(file), output_dir=str(out)))
        assert PuzzleDataset(out, "train", global_batch_size=4).num_examples == 11
    again = tmp_path / "again.jsonl"
    gym.write(gym.GymOptions(task="mini_sudoku", size=12, output_file=str(again)))
    assert again.read_bytes() == (tmp_path / "mini_sudoku.jsonl").read_bytes()
    for task, setting in (("sudoku", "min_emty=3"), ("sudoku", "min_empty=90"), ("rotate_matrix", "min_n=2.5")):
        with pytest.raises(UserError, match=f"refuses the settings of {task}, {{'{setting.split('=')[0]}'"):
            gym.write(gym.GymOptions(task=task, settings=[setting], output_file=str(tmp_path / "no.jsonl")))
    assert not (tmp_path / "no.jsonl").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("reasoning_gym")
@pytest.mark.parametrize(
    ("task", "settings", "shape"),
    [
        ("sudoku", ["min_empty=30", "max_empty=40"], (9, 9)),
        ("mini_sudoku", None, (4, 4)),
        ("rotate_matrix", ["min_n=3", "max_n=5"], (5, 5)),
    ],
)
def test_a_task_is_trained_and_evaluated(
    task: str,
    settings: list[str] | None,
    shape: tuple[int, int],
    tmp_path: Path,
    call_script: Callable[..., tuple[int, str, str]],
) -> None:
    """The way from a task to an accuracy would break off somewhere on it."""
    file, data, run = tmp_path / "pairs.jsonl", tmp_path / "data", tmp_path / "run"
    gym.write(gym.GymOptions(task=task, size=60, settings=settings, output_file=str(file)))
    build_pairs_dataset.build(
        build_pairs_dataset.PairsOptions(input_file=str(file), output_dir=str(data), test_fraction=0.2)
    )
    metadata = PuzzleDataset(data, "train", global_batch_size=4).metadata
    assert metadata.shape == shape
    if "sudoku" in task:  # 0 is a blank, so that the tokens are those of the project's own Sudoku
        labels = np.load(data / "train" / "all__labels.npy")
        box = int(shape[0] ** 0.5)
        assert Board(box, box).is_solution(labels.astype(np.int64) - 1).all()

    status, _, err = call_script(pretrain, *train_arguments(data, run))
    assert status == 0, err
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/lm_loss"] for line in log if "train/lm_loss" in line]
    assert losses[-1] < losses[0]

    status, out, err = call_script(evaluate, f"checkpoint={run}", "show_examples=1")
    assert status == 0, err
    assert 0 < json.loads(out.splitlines()[-1])["eval/accuracy"] <= 1
    lines = out.splitlines()
    titles = next(i for i, line in enumerate(lines) if line.startswith("puzzle"))
    tokens = np.load(data / "test" / "all__inputs.npy")[0].reshape(shape)
    assert metadata.vocabulary is not None
    for row, line in zip(tokens, lines[titles + 1 :], strict=False):
        symbols = [metadata.vocabulary[token] for token in row if token]
        assert line.split()[: len(symbols)] == symbols


@pytest.mark.slow
@pytest.mark.usefixtures("reasoning_gym")
def test_the_command_line(tmp_path: Path) -> None:
    command = "python dataset/reasoning_gym_pairs.py --task mini_sudoku --size 3 --settings min_empty=4 max_empty=4"
    result = run_script(command, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "3 puzzles written to data/mini_sudoku.jsonl\n"
    rows = [json.loads(line) for line in (tmp_path / "data" / "mini_sudoku.jsonl").read_text().splitlines()]
    assert [sum(line.count(0) for line in row["input"]) for row in rows] == [4, 4, 4]
    assert_one_line_error(run_script(command, tmp_path), "data/mini_sudoku.jsonl is there already")
