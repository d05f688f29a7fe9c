"""Puzzles as text and as pictures: the right symbols in the right cells, and every mistake of the model visible."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from utils.evaluation import puzzle_view
from utils.evaluation.puzzle_view import draw_puzzle, format_puzzle, is_sudoku

RED, BLUE, BLACK, GREY = "#d62728", "#1f6fb4", "#1a1a1a", "#b8b8b8"


def sudoku(preds: list[int]) -> dict[str, np.ndarray]:
    """A 2×2 board: tokens are blank 1 and digits 2 to 3. The first cell is given."""
    return {"inputs": np.array([2, 1, 1, 1]), "labels": np.array([2, 3, 3, 2]), "preds": np.array(preds)}


def cell(image: Image.Image, panel: int, index: int, columns: int, size: int) -> set[str]:
    """The colours of a cell in one of the three panels, as hex."""
    width = columns * size
    left = 8 + panel * (width + 8) + index % columns * size
    top = 8 + index // columns * size
    found = image.crop((left, top, left + size, top + size)).getcolors()
    assert found is not None
    return {"#{:02x}{:02x}{:02x}".format(*colour[:3]) for _, colour in found if isinstance(colour, tuple)}


def test_text_shows_three_boards_side_by_side_and_marks_wrong_cells() -> None:
    assert format_puzzle(sudoku([2, 3, 1, 3]), 4) == "\n".join(
        [
            "puzzle   answer   truth   2 wrong cells",
            "1 .      1  2     1 2",
            ". .      .* 2*    2 1",
        ]
    )
    assert format_puzzle(sudoku([2, 3, 3, 2]), 4).splitlines()[0].endswith("truth   right")
    assert format_puzzle(sudoku([2, 3, 3, 3]), 4).splitlines()[0].endswith("1 wrong cell")


def test_unscored_cells_are_neither_wrong_nor_shown() -> None:
    sample = {"inputs": np.array([4, 11, 0, 7]), "labels": np.array([4, 5, -100, 7]), "preds": np.array([4, 5, 9, 7])}
    assert format_puzzle(sample, 12) == "\n".join(
        ["puzzle   answer   truth   right", " 4 11    4  5     4 5", " 0  7    9  7     - 7"]
    )


def test_a_length_that_is_no_square_is_one_row() -> None:
    sample = {name: np.array([1, 2, 3]) for name in ("inputs", "labels", "preds")}
    assert format_puzzle(sample, 5).splitlines()[1:] == ["1 2 3    1  2  3    1 2 3"]


@pytest.mark.parametrize(
    ("length", "vocab_size", "expected"),
    [(81, 11, True), (16, 6, True), (36, 8, True), (900, 12, False), (900, 6, False), (1, 3, False), (80, 11, False)],
)
def test_sudoku_is_known_by_its_sizes(length: int, vocab_size: int, expected: bool) -> None:
    assert is_sudoku(length, vocab_size) is expected


def test_picture_of_a_sudoku_tells_given_right_and_wrong_apart() -> None:
    """In W&B one looks for red; a cell that the model left blank is as wrong as a wrong digit."""
    size = puzzle_view._CELL
    image = draw_puzzle(sudoku([2, 3, 2, 1]), 4)
    assert image.size == (3 * 2 * size + 4 * 8, 2 * size + 2 * 8)

    def has(panel: int, index: int, colour: str) -> bool:
        return colour in cell(image, panel, index, 2, size)

    puzzle, prediction, truth = range(3)
    assert has(puzzle, 0, BLACK)
    assert not any(has(puzzle, index, colour) for index in (1, 2) for colour in (BLACK, BLUE, RED))
    assert has(prediction, 0, BLACK)  # given
    assert has(prediction, 1, BLUE)  # found
    assert has(prediction, 2, RED)  # a wrong digit
    assert has(prediction, 3, RED)  # left blank
    assert not any(has(prediction, index, RED) for index in (0,))
    assert [has(truth, index, BLUE) for index in range(4)] == [False, True, True, True]
    assert not any(has(truth, index, RED) for index in range(4))
    assert has(puzzle, 1, GREY)


def test_picture_of_other_puzzles_shows_tokens_as_colours_and_frames_wrong_ones() -> None:
    tokens = np.array([1, 2, 3, 4])
    image = draw_puzzle({"inputs": tokens, "labels": tokens, "preds": np.array([1, 2, 3, 3])}, 6)
    size = puzzle_view._CELL // 3
    middle = [image.getpixel((8 + 2 * size + 8 + i % 2 * size + 4, 8 + i // 2 * size + 4)) for i in range(4)]
    assert len(set(middle)) == 3  # the last is shown as the third is
    assert RED in cell(image, 1, 3, 2, size)
    assert RED not in cell(image, 1, 0, 2, size)


def test_a_full_arc_grid_and_a_9x9_sudoku_can_be_drawn() -> None:
    rng = np.random.default_rng(0)
    for length, vocab_size in ((900, 12), (81, 11), (256, 18)):
        sample = {name: rng.integers(0, vocab_size, length) for name in ("inputs", "labels", "preds")}
        sample["labels"][::7] = -100
        assert draw_puzzle(sample, vocab_size).width > draw_puzzle(sample, vocab_size).height
        assert len(format_puzzle(sample, vocab_size).splitlines()) == 1 + int(length**0.5)
