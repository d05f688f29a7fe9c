"""Answers judged without their label: what counts as a valid Sudoku, a path, a shortest path, and for which data."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from common.errors import UserError
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import PuzzleDataset
from dataset.writer import DatasetWriter
from tests.helpers.configs import pretrain_config, train_state
from utils.evaluation.evaluate import Evaluator, evaluate, metric_names
from utils.evaluation.validity import answer_checks, distances, optimal_path, valid_path, valid_sudoku

SOLVED_9 = np.array([(3 * row + row // 3 + col) % 9 + 2 for row in range(9) for col in range(9)], np.uint8)
SOLVED_6 = np.array([(3 * row + row // 2 + col) % 6 + 2 for row in range(6) for col in range(6)], np.uint8)


def metadata(seq_len: int, vocab_size: int, **more: Any) -> PuzzleDatasetMetadata:
    return PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_puzzle_identifiers=1,
        total_groups=1,
        mean_puzzle_examples=1.0,
        sets=["all"],
        **more,
    )


def maze(*rows: str) -> np.ndarray:
    """Tokens `[1, seq_len]` of a maze in the builder's characters."""
    return np.array([["# SGo".index(cell) + 1 for cell in "".join(rows)]], np.uint8)


def test_valid_sudoku_asks_for_every_unit_and_every_clue() -> None:
    """A model would be credited for grids that break a rule, or for solving another puzzle than it was given."""
    puzzle = np.where(np.arange(81) % 3 == 0, SOLVED_9, 1)
    rotated = np.where(SOLVED_9 == 10, 2, SOLVED_9 + 1)  # also a solution grid, of other puzzles
    swapped_rows = SOLVED_9.reshape(9, 9)[[3, 1, 2, 0, 4, 5, 6, 7, 8]].ravel()  # breaks boxes only
    shifted_rows = np.stack([np.roll(np.arange(2, 11), row) for row in range(9)]).ravel()  # rows and columns only
    by_rows = np.tile(np.arange(2, 11), 9)  # right rows only
    one_blank, one_off, far_off = (np.where(np.arange(81) == 40, token, SOLVED_9) for token in (1, 11, 200))
    answers = {
        "solution": (puzzle, SOLVED_9, True),
        "no clues": (np.ones(81), rotated, True),
        "clues changed": (puzzle, rotated, False),
        "boxes": (np.ones(81), swapped_rows, False),
        "boxes of shifted rows": (np.ones(81), shifted_rows, False),
        "columns": (np.ones(81), by_rows, False),
        "rows": (np.ones(81), by_rows.reshape(9, 9).T.ravel(), False),
        "unsolved": (puzzle, puzzle, False),
        "blank": (np.ones(81), one_blank, False),
        "beyond 9": (np.ones(81), one_off, False),
        "no token at all": (np.ones(81), far_off, False),
        "padding": (np.ones(81), np.zeros(81), False),
    }
    inputs, preds, expected = (np.array(column) for column in zip(*answers.values(), strict=True))
    for dtype in (np.uint8, np.int32, np.uint32):
        found = valid_sudoku(inputs.astype(np.int32), preds.astype(dtype), 3, 3)
        assert dict(zip(answers, found.tolist(), strict=True)) == dict(zip(answers, expected.tolist(), strict=True))


def test_boxes_may_be_wider_than_high() -> None:
    """6x6 puzzles have boxes of two rows and three columns: with those of three rows, right answers count as wrong."""
    blank = np.ones((1, 36), np.uint8)
    assert valid_sudoku(blank, SOLVED_6[None], 2, 3).tolist() == [True]
    assert valid_sudoku(blank, SOLVED_6[None], 3, 2).tolist() == [False]
    assert valid_sudoku(blank, SOLVED_6.reshape(6, 6).T.reshape(1, 36), 3, 2).tolist() == [True]


MAZE = maze("S  #", " # #", "   #", "##G#")


@pytest.mark.parametrize(
    ("name", "answer", "valid", "optimal"),
    [
        ("shortest", ("S  #", "o# #", "ooo#", "##G#"), True, True),
        ("the other shortest", ("Soo#", " #o#", "  o#", "##G#"), True, True),
        ("a stray cell", ("S o#", "o# #", "ooo#", "##G#"), True, False),
        ("all open cells", ("Soo#", "o#o#", "ooo#", "##G#"), True, False),
        ("a gap", ("S  #", "o# #", "o o#", "##G#"), False, False),
        ("diagonal", ("S  #", "o# #", " oo#", "##G#"), False, False),
        ("over a wall", ("S  #", "oo #", " oo#", "##G#"), False, False),
        ("a wall added", ("S  #", "o###", "ooo#", "##G#"), False, False),
        ("a wall removed", ("S  #", "o# #", "ooo ", "##G#"), False, False),
        ("goal moved", ("S  #", "o# #", "ooG#", "##G#"), False, False),
        ("start overwritten", ("o  #", "o# #", "ooo#", "##G#"), False, False),
        ("goal overwritten", ("S  #", "o# #", "ooo#", "##o#"), False, False),
        ("nothing", ("S  #", " # #", "   #", "##G#"), False, False),
    ],
)
def test_paths(name: str, answer: tuple[str, ...], valid: bool, optimal: bool) -> None:
    """A model would be credited for walking through walls, or not for a path that is as good as the label's."""
    preds = maze(*answer)
    assert valid_path(MAZE, preds).tolist() == [valid]
    assert optimal_path(MAZE, preds.astype(np.uint32)).tolist() == [optimal]


def test_mazes_at_the_edges_of_what_is_possible() -> None:
    """Neighbours need no path between them; without start or goal nothing is a path; moves don't wrap around rows."""
    for answer, optimal in ((("SG", "  "), True), (("SG", "oo"), False)):
        assert valid_path(maze("SG", "  "), maze(*answer)).tolist() == [True]
        assert optimal_path(maze("SG", "  "), maze(*answer)).tolist() == [optimal]
    detour = maze("S   ", "### ", "    ", "G###")
    walked = maze("Sooo", "###o", "oooo", "G###")
    assert optimal_path(detour, walked).tolist() == [True]
    for broken in (maze("S ", "  "), maze("G ", "  "), maze("SS", " G"), maze("SG", " G"), np.zeros((1, 4), np.uint8)):
        assert valid_path(broken, broken).tolist() == [False]
    wrapping = maze("  S", "o  ", "G  ")
    assert valid_path(np.where(wrapping == 5, 2, wrapping), wrapping).tolist() == [False]


def path_length(board: np.ndarray, passable: np.ndarray) -> int:
    """Moves from start to goal, one maze at a time."""
    side = math.isqrt(len(board))
    start, goal = (divmod(int(np.flatnonzero(board == token)[0]), side) for token in (3, 4))
    seen, queue = {start: 0}, deque([start])
    while queue:
        row, col = queue.popleft()
        for there in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
            if min(there) >= 0 and max(there) < side and passable[there[0] * side + there[1]] and there not in seen:
                seen[there] = seen[(row, col)] + 1
                queue.append(there)
    return seen.get(goal, -1)


@pytest.mark.parametrize("side", [2, 5, 12])
def test_distances_are_those_of_a_search_maze_by_maze(side: int) -> None:
    """Boards are searched side by side in one array: a leak from one to the next would shorten paths."""
    rng = np.random.default_rng(side)
    mazes = np.where(rng.random((200, side * side)) < 0.35, 1, 2)
    for row in mazes:
        row[rng.choice(side * side, 2, replace=False)] = 3, 4
    passable = mazes != 1
    expected = [path_length(row, free) for row, free in zip(mazes, passable, strict=True)]
    assert distances(mazes, passable).tolist() == expected
    assert {-1, 1} < set(expected)


def test_a_thousand_large_mazes_take_no_time() -> None:
    """The check runs at every evaluation. A serpentine is the longest search that a 30x30 maze can ask for."""
    rows = [" " * 30 if row % 2 == 0 else "#" * 29 + " " if row % 4 == 1 else " " + "#" * 29 for row in range(30)]
    rows[0], rows[29] = "S" + rows[0][1:], rows[29].replace(" ", "G")
    mazes = np.repeat(maze(*rows), 1000, axis=0)
    paths = np.where(mazes == 2, 5, mazes)
    started = time.process_time()
    assert optimal_path(mazes, paths).all()
    assert time.process_time() - started < 3  # 0.4 s where this was written


def test_checks_are_chosen_by_kind() -> None:
    """Numbers that mean nothing would be logged for ARC or somebody's own puzzles."""
    names = {
        "sudoku 9x9": (metadata(81, 11, kind="sudoku", box=(3, 3)), ["valid"]),
        "sudoku 6x6": (metadata(36, 8, kind="sudoku", box=(2, 3)), ["valid"]),
        "sudoku without box": (metadata(16, 6, kind="sudoku"), ["valid"]),
        "sudoku whose boxes nobody knows": (metadata(36, 8, kind="sudoku"), []),
        "maze": (metadata(49, 6, kind="maze"), ["valid_path", "optimal"]),
        "maze that is no square": (metadata(48, 6, kind="maze"), []),
        "arc": (metadata(900, 12, kind="arc"), []),
        "own": (metadata(81, 11, kind="own"), []),
        "old 9x9 sudoku": (metadata(81, 11), ["valid"]),
        "old 30x30 maze": (metadata(900, 6), ["valid_path", "optimal"]),
        "old arc": (metadata(900, 12), []),
        "old 4x4, sudoku or maze": (metadata(16, 6), []),
    }
    for name, (data, expected) in names.items():
        assert list(answer_checks(data)) == expected, name
    check = answer_checks(metadata(36, 8, kind="sudoku", box=(2, 3)))["valid"]
    assert check(np.ones((1, 36), np.uint8), SOLVED_6[None]).all(), "the box shape of dataset.json is not used"
    for box in ((3, 3), (0, 6), (-2, -3)):
        with pytest.raises(UserError, match=r"dataset.json: box is \[.*\], expected rows and columns .* seq_len = 36"):
            answer_checks(metadata(36, 8, kind="sudoku", box=box))


def test_evaluation_reports_them_as_means_over_the_examples(tmp_path: Path) -> None:
    """Padding rows, here 6 of the last batch's 8, must not count, and rows without labels must; the names must be those
    that stop_when may use."""
    solutions = [
        np.array(grid) for grid in itertools.product((2, 3, 4, 5), repeat=4) if len(set(grid)) == 4
    ]  # first rows; the others follow by shifts
    boards = np.stack([np.concatenate([np.roll(row, -shift) for shift in (0, 2, 1, 3)]) for row in solutions[:10]])
    blanked = np.where(np.arange(16) < 8, 1, boards)
    blanked[:3] = boards[:3]  # nothing to solve: an answer that copies the input is valid
    labels = np.where(np.arange(10)[:, None] == 9, 0, boards)  # the last has no label
    with DatasetWriter(tmp_path / "4x4", seq_len=16, vocab_size=6, kind="sudoku", box=(2, 2)) as writer:
        for split in ("train", "test"):
            ones = np.ones(10, np.int32)
            writer.add(
                split,
                blanked.astype(np.uint8),
                labels.astype(np.uint8),
                puzzle_identifiers=0 * ones,
                examples_per_puzzle=ones,
                puzzles_per_group=ones,
            )
    data = PuzzleDataset(tmp_path / "4x4", "test", global_batch_size=8)

    class Copies(Evaluator):
        """Answers every puzzle with itself, and padding with a valid grid; all else is the model's."""

        def outer_steps(self, batch: Any) -> Any:
            preds = mx.where(batch["inputs"] == 0, mx.array(boards[0]), batch["inputs"])
            for carry, metrics, outputs in super().outer_steps(batch):
                yield carry, metrics, outputs | {"preds": preds}

    result = evaluate(Copies(train_state(pretrain_config(), data.metadata).head), data)
    assert result.metrics["eval/valid"] == pytest.approx(0.3)
    assert list(result.metrics) == metric_names(data)
