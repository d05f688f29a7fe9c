"""Symmetric copies at test time: what a model is asked is the same puzzle, and its answer comes back to its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError, explain
from dataset import mazes
from dataset.arc_grids import FIRST_COLOUR, SIDE, restore_grid, tokens_to_grid
from dataset.build_mini_maze_dataset import random_mazes
from dataset.metadata import PuzzleDatasetMetadata, bare_metadata
from dataset.relabelling import Relabelling, relabeller
from dataset.sudoku import Board
from dataset.symmetries import dihedral
from tests.helpers.arc_grids import augment_grid, grid_to_tokens

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, SIDE)


def sudoku(box_rows: int, box_cols: int) -> PuzzleDatasetMetadata:
    side = box_rows * box_cols
    return bare_metadata(side * side, side + 2, kind="sudoku", box=(box_rows, box_cols))


def solved_sudoku(box_rows: int, box_cols: int) -> np.ndarray:
    """Tokens int32 `[s]`."""
    side = box_rows * box_cols
    row, col = np.divmod(np.arange(side * side), side)
    return ((box_cols * row + row // box_rows + col) % side + 2).astype(np.int32)


ARC = bare_metadata(900, 12, kind="arc")
BOXES = [(2, 2), (2, 3), (3, 2), (1, 5), (3, 3), (2, 4), (4, 4), (3, 6)]


@pytest.mark.parametrize("box", BOXES)
def test_a_copy_of_a_sudoku_is_one_with_the_same_answer(box: tuple[int, int]) -> None:
    """A model would be asked puzzles that have no answer, or its right answers would come back wrong."""
    board, draw = Board(*box), relabeller(sudoku(*box))
    rng = np.random.default_rng(0)
    labels = solved_sudoku(*box)
    assert board.is_solution(labels[None] - 1).all()
    for _ in range(50):
        inputs = np.where(rng.random(board.cells) < 0.5, 1, labels)
        scored = np.where(inputs == 1, labels, -100)
        relabelling = draw(rng, inputs)
        copy, answer, copy_scored = (relabelling.apply(tokens) for tokens in (inputs, labels, scored))
        assert copy.dtype == answer.dtype == np.int32
        assert board.is_valid_answer(copy[None], answer[None]).all()
        assert np.array_equal(copy_scored, np.where(copy == 1, answer, -100))
        for tokens in (inputs, labels, scored, np.zeros_like(labels)):
            back = relabelling.undo(relabelling.apply(tokens))
            assert np.array_equal(back, tokens)
            assert back.dtype == np.int32


def test_every_copy_of_a_small_sudoku_is_drawn() -> None:
    """Votes over copies would hear some of them never, and the same ones again and again."""
    grid = [int(token) - 1 for token in solved_sudoku(2, 2)]
    todo, orbit = [tuple(grid)], {tuple(grid)}

    def neighbours(cells: tuple[int, ...]) -> list[tuple[int, ...]]:
        rows = np.array(cells).reshape(4, 4)
        line_swaps = ([1, 0, 2, 3], [0, 1, 3, 2], [2, 3, 0, 1])
        moved = [rows.T, *(rows[order] for order in line_swaps), *(rows[:, order] for order in line_swaps)]
        renamed = [np.array(digits)[rows] for digits in ([0, 2, 1, 3, 4], [0, 2, 3, 4, 1])]
        return [tuple(board.ravel().tolist()) for board in moved + renamed]

    while todo:
        for copy in neighbours(todo.pop()):
            if copy not in orbit:
                orbit.add(copy)
                todo.append(copy)

    rng, draw = np.random.default_rng(1), relabeller(sudoku(2, 2))
    tokens = np.array(grid) + 1
    drawn = {tuple((draw(rng, tokens).apply(tokens) - 1).tolist()) for _ in range(4000)}
    assert drawn == orbit
    assert len(orbit) in (96, 192)  # of the 288 grids of 4x4, in two classes


def positions(relabelling: Relabelling, cells: int) -> tuple[int, ...]:
    """The cells that come to each cell, of a board whose tokens are no Sudoku's: they are not renamed."""
    return tuple((relabelling.apply(np.arange(cells) + 1000) - 1000).tolist())


def test_lines_move_as_the_boxes_allow() -> None:
    """Copies of 6x6 puzzles, whose boxes lie, would break boxes, or make far fewer copies than there are."""
    rng, draw = np.random.default_rng(0), relabeller(sudoku(2, 3))
    boards = [np.array(positions(draw(rng, np.ones(36)), 36)).reshape(6, 6) for _ in range(3000)]
    row_orders = {tuple((board[:, 0] // 6).tolist()) for board in boards}
    col_orders = {tuple((board[0] % 6).tolist()) for board in boards}
    assert all((board // 6 == board[:, :1] // 6).all() for board in boards), "a board is transposed"
    assert len(row_orders) == 6 * 2**3  # 3 bands of 2 rows
    assert len(col_orders) == 2 * 6**2  # 2 stacks of 3 columns

    draw = relabeller(sudoku(2, 2))
    assert len({positions(draw(rng, np.ones(16)), 16) for _ in range(3000)}) == 2 * 8 * 8


def test_all_digits_are_permuted() -> None:
    """Copies would leave a digit where it was, and with it the mistakes that a model makes for it."""
    rng, draw = np.random.default_rng(0), relabeller(sudoku(3, 3))
    tokens = np.arange(81) % 11
    seen = np.zeros((11, 11), int)
    for _ in range(400):
        relabelling = draw(rng, tokens)
        for token in range(11):
            seen[token, relabelling.apply(np.full(81, token))[0]] += 1
    assert (seen[2:, 2:] > 10).all()
    assert seen[0, 0] == seen[1, 1] == 400


def test_a_copy_of_a_maze_has_the_same_shortest_path() -> None:
    """A model would be asked mazes without a way, or shown paths that are none when they are mapped back."""
    rng = np.random.default_rng(0)
    questions, answers = random_mazes(rng, 30, 8, 6)
    draw = relabeller(bare_metadata(64, 6, kind="maze"))
    assert len(questions) > 3
    for question, answer in zip(questions, answers, strict=True):
        inputs, labels = question.ravel() + 1, answer.ravel() + 1
        for _ in range(10):
            relabelling = draw(rng, inputs)
            copy, copy_labels = relabelling.apply(inputs), relabelling.apply(labels)
            assert copy.dtype == np.int32
            assert mazes.is_shortest_path(copy[None], copy_labels[None]).all()
            scored = np.where(labels == 5, labels.astype(int), -100)
            for tokens in (inputs, labels, scored):
                assert np.array_equal(relabelling.undo(relabelling.apply(tokens)), tokens)


def test_all_eight_copies_of_a_maze_are_drawn() -> None:
    """Votes would be fewer than they could be."""
    rng, draw = np.random.default_rng(0), relabeller(bare_metadata(16, 6, kind="maze"))
    board = np.arange(16).reshape(4, 4)
    expected = {tuple(dihedral(board, k).ravel().tolist()) for k in range(8)}
    assert {positions(draw(rng, np.ones(16)), 16) for _ in range(200)} == expected
    assert len(expected) == 8


def random_grid(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    return rng.integers(10, size=(rows, cols), dtype=np.uint8)


@settings(deadline=None)
@given(sides, sides, sides, sides, seeds)
def test_arc_grids_are_moved_and_recoloured_as_the_builder_does(
    rows: int, cols: int, label_rows: int, label_cols: int, seed: int
) -> None:
    """A model would see copies unlike those that it was trained on, or its right answers come back wrong."""
    rng = np.random.default_rng(seed)
    grid, answer = random_grid(rng, rows, cols), random_grid(rng, label_rows, label_cols)
    inputs, labels = (grid_to_tokens(board).astype(np.int32) for board in (grid, answer))
    relabelling = relabeller(ARC)(rng, inputs)
    colours, copies = _colours_of(relabelling), [relabelling.apply(tokens) for tokens in (inputs, labels)]
    fitting = [
        k
        for k in range(8)
        if np.array_equal(copies[0], grid_to_tokens(augment_grid(grid, k, colours)))
        and np.array_equal(copies[1], grid_to_tokens(augment_grid(answer, k, colours)))
    ]
    assert fitting
    k = fitting[0]
    assert np.array_equal(restore_grid(tokens_to_grid(copies[1]), k, colours), answer)
    scored = np.where(labels == 0, -100, labels)
    assert np.array_equal(relabelling.apply(scored), np.where(copies[1] == 0, -100, copies[1]))
    for tokens in (inputs, labels, scored):
        back = relabelling.undo(relabelling.apply(tokens))
        assert np.array_equal(back, tokens)
        assert back.dtype == np.int32


def _colours_of(relabelling: Relabelling) -> np.ndarray:
    """The new colour of each colour, seen on grids of one cell."""
    cells = [relabelling.apply(grid_to_tokens(np.array([[colour]], np.uint8)))[0] for colour in range(10)]
    return (np.array(cells) - FIRST_COLOUR).astype(np.uint8)


def test_all_transforms_and_colours_of_arc_are_drawn() -> None:
    """Votes would hear only some of the copies, and the background, which models know by its colour, would change."""
    rng, draw = np.random.default_rng(0), relabeller(ARC)
    grid = np.array([[0, 0, 0], [0, 0, 0]], np.uint8)
    drawn = [draw(rng, grid_to_tokens(grid)) for _ in range(300)]
    colours = np.stack([_colours_of(relabelling) for relabelling in drawn])
    assert (colours[:, 0] == 0).all()
    assert (np.sort(colours, axis=1) == np.arange(10)).all()
    assert all(len(set(colours[:, colour])) == 9 for colour in range(1, 10))

    marked = np.array([[1, 0, 0], [0, 0, 0]], np.uint8)  # looks different in all 8 ways
    seen = set()
    for relabelling in drawn:
        copy = tokens_to_grid(relabelling.apply(grid_to_tokens(marked)))
        seen.add((copy.shape, (copy > 0).tobytes()))
    assert len(seen) == 8


def test_an_arc_answer_is_cut_as_the_published_scoring_does() -> None:
    """Answers with a few wrong cells around the grid would be lost, or an answer without one would end the run."""
    rng = np.random.default_rng(0)
    grid = random_grid(rng, 4, 3)
    relabelling = relabeller(ARC)(rng, grid_to_tokens(grid))
    answer = relabelling.apply(grid_to_tokens(grid))
    untidy = np.where(answer == 0, rng.integers(2, size=900), answer)
    assert np.array_equal(relabelling.undo(untidy), grid_to_tokens(grid))
    for without in (np.zeros(900, int), np.ones(900, int), np.concatenate(([0], np.full(899, 5)))):
        assert np.array_equal(relabelling.undo(without), np.zeros(900))
    assert np.array_equal(relabelling.apply(np.zeros(900, int)), np.zeros(900))


def test_a_shifted_grid_comes_back_to_its_place() -> None:
    """Training puzzles stand anywhere on their boards: right answers to their copies would all count as wrong."""
    rng = np.random.default_rng(0)
    grid, answer = random_grid(rng, 4, 3), random_grid(rng, 5, 6)
    inputs, labels = (grid_to_tokens(board, 20, 7) for board in (grid, answer))
    for _ in range(20):
        relabelling = relabeller(ARC)(rng, inputs)
        copies = [relabelling.apply(tokens) for tokens in (inputs, labels)]
        assert all(copy[0] >= FIRST_COLOUR for copy in copies), "not at the top left"
        assert [relabelling.undo(copy).tolist() for copy in copies] == [inputs.tolist(), labels.tolist()]
        large = random_grid(rng, SIDE, SIDE)  # of which no cell may be lost
        assert sorted(relabelling.undo(relabelling.apply(grid_to_tokens(large)))) == sorted(grid_to_tokens(large))


def test_an_arc_board_with_holes_is_refused_in_one_line() -> None:
    """Data that is no grid would be relabelled into nonsense, or end in a traceback."""
    board = grid_to_tokens(np.ones((3, 3), np.uint8))
    relabelling = relabeller(ARC)(np.random.default_rng(0), board)
    for token in (0, 1, 12, 200):
        with pytest.raises(UserError, match="a board holds no rectangle of colours; check the data set"):
            relabelling.apply(np.where(np.arange(900) == 31, token, board))


def test_kinds_are_told_by_sizes_where_files_name_none() -> None:
    """Data sets of the PyTorch code name no kind: no copies could be made of them."""
    rng = np.random.default_rng(0)
    tokens = solved_sudoku(3, 3)
    copy = relabeller(bare_metadata(81, 11))(rng, tokens).apply(tokens)
    assert Board(3, 3).is_solution(copy[None] - 1).all()
    assert not np.array_equal(copy, tokens)
    for sizes in ((900, 6), (900, 12)):
        relabeller(bare_metadata(*sizes))


@pytest.mark.parametrize(
    ("sizes", "keys", "message"),
    [
        ((36, 9), {}, "names no kind, whose symmetries aren't known; expected sudoku, maze or arc"),
        ((16, 6), {"vocabulary": ["", *"abcde"]}, "names no kind, whose symmetries aren't known"),  # Sudoku's sizes
        ((36, 9), {"kind": "sliding"}, "names the kind sliding, whose symmetries aren't known; expected sudoku"),
        ((36, 9), {"kind": "a\n" * 500}, "names the kind 'a.na"),
        ((36, 8), {"kind": "sudoku"}, 'names no box, expected its rows and columns, such as "box": .2, 3.'),
        ((36, 8), {"kind": "sudoku", "box": (3, 3)}, "box is .3, 3., expected rows and columns"),
        ((36, 8), {"kind": "sudoku", "box": (-2, -3)}, "box is .-2, -3., expected rows and columns"),
        ((12, 6), {"kind": "maze"}, "mazes: they have 1x12 cells, expected a square"),
        ((36, 6), {"kind": "maze", "shape": (4, 9)}, "mazes: they have 4x9 cells, expected a square"),
        ((100, 12), {"kind": "arc"}, "seq_len is 100, expected 900"),
    ],
)
def test_what_has_no_known_symmetries_is_refused_in_one_line(
    sizes: tuple[int, int], keys: dict[str, Any], message: str
) -> None:
    """Copies would be other puzzles than the one that was asked."""
    with pytest.raises(UserError, match=message) as caught:
        relabeller(bare_metadata(*sizes, **keys))
    line = explain(caught.value) or ""
    assert "\n" not in line
    assert len(line) < 300
