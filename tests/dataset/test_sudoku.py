"""The rules of Sudoku: what counts as a valid answer, for boxes of any shape."""

from __future__ import annotations

import numpy as np

from dataset.sudoku import Board

SOLVED_9 = np.array([(3 * row + row // 3 + col) % 9 + 2 for row in range(9) for col in range(9)], np.uint8)
SOLVED_6 = np.array([(3 * row + row // 2 + col) % 6 + 2 for row in range(6) for col in range(6)], np.uint8)


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
        found = Board(3, 3).is_valid_answer(inputs.astype(np.int32), preds.astype(dtype))
        assert dict(zip(answers, found.tolist(), strict=True)) == dict(zip(answers, expected.tolist(), strict=True))


def test_boxes_may_be_wider_than_high() -> None:
    """6x6 puzzles have boxes of two rows and three columns: with those of three rows, right answers count as wrong."""
    blank = np.ones((1, 36), np.uint8)
    assert Board(2, 3).is_valid_answer(blank, SOLVED_6[None]).tolist() == [True]
    assert Board(3, 2).is_valid_answer(blank, SOLVED_6[None]).tolist() == [False]
    assert Board(3, 2).is_valid_answer(blank, SOLVED_6.reshape(6, 6).T.reshape(1, 36)).tolist() == [True]


def test_boards_may_be_larger_than_a_machine_word_allows() -> None:
    """16x16 and 25x25 are played as well: their digits would run out of the bits of a mask."""
    for box in (4, 5, 9):
        side = box * box
        rows, cols = np.divmod(np.arange(side * side), side)
        solved = (box * rows + rows // box + cols) % side + 1
        broken = np.where(solved == side, 1, solved)
        assert Board(box, box).is_solution(np.stack((solved, broken))).tolist() == [True, False]
