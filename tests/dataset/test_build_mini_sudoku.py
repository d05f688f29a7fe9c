"""The offline generator: every puzzle has one solution, and the test split tests something."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from dataset import build_mini_sudoku_dataset as mini
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.sources import assert_one_line_error, folder_bytes, run_script


def build(out: Path, **options: int) -> Path:
    mini.build(mini.MiniSudokuOptions(output_dir=str(out), **options))
    return out


def load(out: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    return np.load(out / split / "all__inputs.npy"), np.load(out / split / "all__labels.npy")


def solutions(puzzle: list[int], box_rows: int, box_cols: int) -> list[list[int]]:
    """The first two solutions of a puzzle (digits, 0 blank), by plain backtracking."""
    n = box_rows * box_cols
    found: list[list[int]] = []
    board = list(puzzle)

    def candidates(cell: int) -> list[int]:
        row, col = divmod(cell, n)
        top, left = row // box_rows * box_rows, col // box_cols * box_cols
        seen = {board[row * n + k] for k in range(n)} | {board[k * n + col] for k in range(n)}
        seen |= {board[r * n + c] for r in range(top, top + box_rows) for c in range(left, left + box_cols)}
        return [digit for digit in range(1, n + 1) if digit not in seen]

    def search() -> None:
        blanks = [(len(candidates(cell)), cell) for cell in range(n * n) if not board[cell]]
        if not blanks:
            found.append(list(board))
            return
        cell = min(blanks)[1]
        for digit in candidates(cell):
            if len(found) < 2:
                board[cell] = digit
                search()
                board[cell] = 0

    search()
    return found


@pytest.mark.parametrize(
    ("box_rows", "box_cols", "blanks", "checked"), [(2, 2, 10, 200), (2, 3, 18, 100), (3, 2, 22, 60), (3, 3, 40, 15)]
)
def test_every_puzzle_has_exactly_one_solution(
    box_rows: int, box_cols: int, blanks: int, checked: int, tmp_path: Path
) -> None:
    """A model would be marked wrong for a right answer, and 90 % on the demo would be out of reach."""
    out = build(tmp_path / "out", box_rows=box_rows, box_cols=box_cols, num_train=400, num_test=100, blanks=blanks)
    for split, n in (("train", 400), ("test", 100)):
        inputs, labels = load(out, split)
        assert inputs.shape == labels.shape == (n, (box_rows * box_cols) ** 2)
        assert ((inputs == 1).sum(axis=1) == blanks).all()
        assert len({row.tobytes() for row in inputs}) == n, "a puzzle occurs twice"
        for question, answer in list(zip((inputs - 1).tolist(), (labels - 1).tolist(), strict=True))[:checked]:
            assert solutions(question, box_rows, box_cols) == [answer]


@pytest.mark.parametrize(
    ("options", "train_grids", "test_grids"),
    [
        ({"num_train": 2000, "num_test": 300}, 2000, 300),
        ({"box_cols": 2, "num_train": 3000, "num_test": 50, "blanks": 10}, 238, 50),
        ({"box_cols": 2, "num_train": 3000, "num_test": 1000, "blanks": 8}, 216, 72),
        ({"box_cols": 2, "num_train": 50, "num_test": 3000, "blanks": 8}, 5, 283),
    ],
)
def test_no_solution_grid_stands_in_both_splits(
    options: dict[str, int], train_grids: int, test_grids: int, tmp_path: Path
) -> None:
    """The test accuracy would partly measure memory; or rest on a handful of grids where there are more."""
    out = build(tmp_path / "out", **options)
    train, test = ({row.tobytes() for row in load(out, split)[1]} for split in ("train", "test"))
    assert not train & test
    assert len(test) == test_grids
    assert len(train) == train_grids


def test_grids_are_not_all_relatives_of_one(tmp_path: Path) -> None:
    """A model could learn one pattern and its relabellings instead of the rules."""
    _, labels = load(build(tmp_path / "out", num_train=1500, num_test=1), "train")

    def cycles(first: list[int], second: list[int]) -> tuple[int, ...]:
        step, left, lengths = dict(zip(first, second, strict=True)), set(first), []
        while left:
            digit, length = left.pop(), 1
            while step[digit] in left:
                digit, length = step[digit], length + 1
                left.remove(digit)
            lengths.append(length)
        return tuple(sorted(lengths))

    # How the two rows of each band permute each other is kept by relabelling digits and permuting rows and columns.
    kinds = set()
    for grid in labels.reshape(-1, 6, 6).tolist():
        kinds.add(tuple(sorted(cycles(grid[r], grid[r + 1]) for r in (0, 2, 4))))
    assert len(kinds) >= 6
    # No digit is favoured in any cell: 250 expected, standard deviation 14.
    counts = np.stack([(labels == digit).sum(axis=0) for digit in range(2, 8)])
    assert abs(counts - 250).max() < 80


def test_four_by_four_reaches_all_288_grids() -> None:
    """The small demo would train on fewer grids than there are."""
    grids = mini.distinct_grids(mini.Board(2, 2), np.random.default_rng(0), 1000)
    assert len(grids) == len({grid.tobytes() for grid in grids}) == 288


def test_propagation_finds_what_is_unique_and_nothing_else() -> None:
    """Uniqueness would be claimed for puzzles that have several solutions."""
    board = mini.Board(2, 2)
    grids = mini.distinct_grids(board, np.random.default_rng(0), 288)
    rng = np.random.default_rng(1)
    questions = grids[rng.integers(288, size=3000)] * (rng.random((3000, 16)) < 0.3)
    masks = np.where(questions == 0, 15, (1 << questions.astype(np.uint16)) >> 1).astype(np.uint16).T
    left = mini.propagate(board, masks).T
    solved = mini.is_solved(board, left.T)
    unique = []
    for question, mask in zip(questions, left, strict=True):
        fitting = grids[((question == 0) | (grids == question)).all(axis=1)]
        assert ((mask >> (fitting - 1)) & 1).all()
        unique.append(len(fitting) == 1)
    assert solved.tolist() == unique, "for 4x4, singles find every unique solution"
    assert 500 < sum(unique) < 1500


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    """A demo result could not be repeated."""
    sizes = {"num_train": 300, "num_test": 20}
    first = folder_bytes(build(tmp_path / "a", seed=1, **sizes))
    assert first == folder_bytes(build(tmp_path / "b", seed=1, **sizes))
    assert first != folder_bytes(build(tmp_path / "c", seed=2, **sizes))


@pytest.mark.slow
def test_command_line_writes_an_ordinary_data_set(tmp_path: Path) -> None:
    """The demo's first command would fail, or its data need a special path in the code."""
    command = "python dataset/build_mini_sudoku_dataset.py --num-train 500 --num-test 50"
    result = run_script(command, tmp_path, terminal=True)
    assert result.returncode == 0, result.stderr
    assert "100%" in result.stderr
    out = tmp_path / "data" / "sudoku-6x6"
    metadata = PuzzleDataset(out, "train", global_batch_size=10).metadata
    assert (metadata.seq_len, metadata.vocab_size, metadata.num_puzzle_identifiers) == (36, 8, 1)
    assert (metadata.pad_id, metadata.ignore_label_id, metadata.total_groups) == (0, 0, 500)
    assert PuzzleDataset(out, "test", global_batch_size=10).num_examples == 50
    assert json.loads((out / "identifiers.json").read_text()) == ["<blank>"]
    inputs, labels = load(out, "train")
    assert ((inputs == 1).sum(axis=1) == 18).all()
    assert ((inputs == labels) | (inputs == 1)).all()


@pytest.mark.slow
def test_impossible_requests_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would wait for ever, or read a traceback."""
    result = run_script("python dataset/build_mini_sudoku_dataset.py --blanks 36", tmp_path)
    assert_one_line_error(result, "--blanks is 36", "1 to 35 for 6x6")
    for options, message in (
        ({"box_rows": 1}, "--box-rows is 1, expected at least 2"),
        ({"box_rows": 4, "box_cols": 3}, "board of 12x12, expected at most 9x9"),
        ({"num_test": 0}, "--num-test is 0, expected at least 1"),
        ({"seed": -1}, "--seed is -1, expected at least 0"),
        # 4x4 with one blank: 288 grids x 16 cells are all the puzzles there are.
        ({"box_cols": 2, "blanks": 1, "num_train": 5000, "num_test": 5}, "of 5000 train puzzles with 1 blanks"),
        # No 4x4 with three clues has one solution.
        ({"box_cols": 2, "blanks": 13, "num_train": 5, "num_test": 5}, "only 0 of 5 train puzzles with 13 blanks"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            build(tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_split_grids_leaves_both_splits_some() -> None:
    """A split without grids would hang or crash the generator."""
    grids = np.arange(288)
    for num_train, num_test in itertools.product((1, 10, 287, 288, 5000), repeat=2):
        train, test = mini.split_grids(grids[: num_train + num_test], num_train, num_test)
        assert len(train)
        assert len(test)
        assert not set(train) & set(test)
