"""Puzzles as text and as pictures: the right symbols in the right cells, and every mistake of the model visible."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from dataset.metadata import PuzzleDatasetMetadata
from tests.helpers.arc_grids import grid_to_tokens
from tests.helpers.configs import sizes
from utils.evaluation.puzzle_kinds import (
    ARC_COLOURS,
    CLUE_PAPER,
    FILLED,
    INK,
    LINE,
    MAZE_COLOURS,
    WRONG,
    WRONG_PAPER,
    boards_of,
)
from utils.evaluation.puzzle_view import HEADING, MARGIN, NARROWEST_BOARD, cell_size, draw_puzzle, format_puzzle

MAZE = sizes(900, 6).model_copy(update={"kind": "maze"})
ARC = sizes(900, 12).model_copy(update={"kind": "arc"})
OWN = sizes(6, 5).model_copy(update={"kind": "pairs", "vocabulary": ["", "-1", "10", "a", "ß"], "shape": (2, 3)})
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def sudoku(preds: list[int]) -> dict[str, np.ndarray]:
    """A 2×2 board: tokens are blank 1 and digits 2 to 3. The first cell is given."""
    return {"inputs": np.array([2, 1, 1, 1]), "labels": np.array([2, 3, 3, 2]), "preds": np.array(preds)}


def maze() -> dict[str, np.ndarray]:
    """A 30×30 maze of open cells with a wall above; the goal is two cells to the right of the start."""
    inputs = np.full(900, 2)
    inputs[:30] = 1
    inputs[[30, 32]] = 3, 4
    labels, preds = inputs.copy(), inputs.copy()
    labels[31] = 5
    preds[60] = 5
    return {"inputs": inputs, "labels": labels, "preds": preds}


def arc(answer: list[list[int]]) -> dict[str, np.ndarray]:
    """A puzzle whose input is a grid of 2×3 and whose truth is [[1, 2]], which is scored with its frame."""
    truth, inputs = (grid_to_tokens(np.array(grid, np.uint8)) for grid in ([[1, 2]], [[0, 5, 9], [3, 3, 3]]))
    labels = np.where(truth == 0, -100, truth.astype(np.int32))
    return {"inputs": inputs, "labels": labels, "preds": grid_to_tokens(np.array(answer, np.uint8))}


def own(preds: list[int]) -> dict[str, np.ndarray]:
    """A board of 2×2 in the top left corner of one of 2×3: its third column is padding, which is not scored."""
    return {
        "inputs": np.array([1, 2, 0, 3, 4, 0]),
        "labels": np.array([2, 1, -100, 4, 3, -100]),
        "preds": np.array(preds),
    }


def cell(
    image: Image.Image, sample: dict[str, np.ndarray], metadata: PuzzleDatasetMetadata, panel: int, index: int
) -> set[str]:
    """The colours of a cell in one of the three boards, as hex, without its lines."""
    boards = boards_of(sample, metadata)
    size = cell_size(boards)
    columns = boards[panel].tokens.shape[1]
    left = MARGIN + sum(max(NARROWEST_BOARD, board.tokens.shape[1] * size) + MARGIN for board in boards[:panel])
    left, top = left + index % columns * size, MARGIN + HEADING + index // columns * size
    found = image.crop((left + 2, top + 2, left + size - 2, top + size - 2)).getcolors()
    assert found is not None
    return {"#{:02x}{:02x}{:02x}".format(*colour[:3]) for _, colour in found if isinstance(colour, tuple)}


# ------------------------------------------------------------------------------------------------ text


def test_text_shows_three_boards_side_by_side_and_marks_wrong_cells() -> None:
    assert format_puzzle(sudoku([2, 3, 1, 3]), sizes(4, 4)) == "\n".join(
        [
            "puzzle   answer   truth   2 wrong cells",
            "1 .      1  2     1 2",
            ". .      .* 2*    2 1",
        ]
    )
    assert format_puzzle(sudoku([2, 3, 3, 2]), sizes(4, 4)).splitlines()[0].endswith("truth   right")
    assert format_puzzle(sudoku([2, 3, 3, 3]), sizes(4, 4)).splitlines()[0].endswith("1 wrong cell")


def test_without_the_truth_there_is_none_to_see() -> None:
    """The answer to a puzzle that nobody has solved would be called right, and be shown as the truth."""
    sample = sudoku([2, 3, 1, 3])
    del sample["labels"]
    assert format_puzzle(sample, sizes(4, 4), verdict="") == "\n".join(
        ["puzzle   answer", "1 .      1 2", ". .      . 2"]
    )
    for labelled, metadata in ((maze(), MAZE), (arc([[1, 2]]), ARC), (own([2, 1, 4, 4, 4, 1]), OWN)):
        for coloured in (False, True):
            unlabelled = {name: array for name, array in labelled.items() if name != "labels"}
            text = format_puzzle(unlabelled, metadata, coloured=coloured, verdict="")
            titles = [word for line in ESCAPE.sub("", text).splitlines() for word in line.split() if len(word) > 3]
            assert {"truth", "wrong", "right"}.isdisjoint(titles)
            assert {"puzzle", "answer"} <= set(titles)


def test_a_verdict_of_ones_own_stands_in_place_of_the_count() -> None:
    """Solutions have a line of their own on how sure the model is."""
    shown = format_puzzle(sudoku([2, 3, 1, 3]), sizes(4, 4), verdict="so so").splitlines()
    assert shown == ["puzzle   answer   truth   so so", "1 .      1  2     1 2", ". .      .* 2*    2 1"]


def test_unscored_cells_are_neither_wrong_nor_shown() -> None:
    sample = {"inputs": np.array([4, 11, 0, 7]), "labels": np.array([4, 5, -100, 7]), "preds": np.array([4, 5, 9, 7])}
    assert format_puzzle(sample, sizes(4, 12)) == "\n".join(
        ["puzzle   answer   truth   right", " 4 11    4  5     4 5", " 0  7    9  7     - 7"]
    )


def test_a_length_that_is_no_square_is_one_row_of_at_most_32() -> None:
    sample = {name: np.array([1, 2, 3]) for name in ("inputs", "labels", "preds")}
    assert format_puzzle(sample, sizes(3, 5)).splitlines()[1:] == ["1 2 3    1  2  3    1 2 3"]
    long = {name: np.arange(40) % 4 for name in ("inputs", "labels", "preds")}
    first, second = format_puzzle(long, sizes(40, 5)).splitlines()[1:3]
    assert first == " ".join("0123" * 8)
    assert second == " ".join("0123" * 2)


def test_own_puzzles_are_shown_in_their_own_symbols_and_shape() -> None:
    """Whoever brings letters would read numbers of tokens, in rows that the board does not have."""
    assert format_puzzle(own([2, 1, 4, 4, 4, 1]), OWN) == "\n".join(
        [
            "puzzle     answer        truth      1 wrong cell",
            "-1 10      10  -1        10 -1",
            " a  ß       ß   ß*        ß  a",
        ]
    )


def test_a_maze_is_shown_in_its_own_characters_within_the_terminal() -> None:
    """Numbers of tokens can't be read as a maze, and lines that the terminal breaks are no board."""
    text = format_puzzle(maze(), MAZE, width=80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    titles = [line.split() for line in lines if "puzzle" in line or "truth" in line]
    assert titles == [["puzzle", "answer"], ["truth", "wrong", "2", "wrong", "cells"]]
    assert lines[1] == "#" * 30 + "   " + "#" * 30
    assert lines[2] == ("S G" + " " * 27 + "   " + "S G").rstrip()
    assert lines[3] == " " * 30 + "   o"
    truth = lines.index(next(line for line in lines if line.startswith("truth")))
    assert lines[truth + 2].startswith("SoG ")
    assert [line[33:].strip(".") for line in lines[truth + 1 : truth + 5]] == ["", "x", "x", ""]

    wide = format_puzzle(maze(), MAZE, width=200).splitlines()
    assert len(wide) == 31
    assert wide[0].split() == ["puzzle", "answer", "truth", "wrong", "2", "wrong", "cells"]


def test_a_wrong_cell_of_a_maze_is_red_in_a_terminal() -> None:
    text = format_puzzle(maze(), MAZE, width=200, coloured=True)
    assert len(ESCAPE.findall(text)) == 2 * 2  # two cells, each with an end
    assert ESCAPE.sub("", text).splitlines()[3] == " " * 33 + "o"


def test_an_arc_grid_is_cropped_and_shown_in_its_colours() -> None:
    """Of 900 numbers nobody sees a grid of two cells."""
    assert format_puzzle(arc([[1, 2]]), ARC) == "\n".join(
        ["puzzle   answer   truth   right", "059      12       12", "333"]
    )
    # An answer that goes on where the truth ends is shown beyond it, as far as it is wrong
    assert format_puzzle(arc([[1, 3, 4]]), ARC) == "\n".join(
        ["puzzle   answer   truth   wrong   2 wrong cells", "059      134      12      .xx", "333"]
    )
    coloured = format_puzzle(arc([[1, 3, 4]]), ARC, coloured=True)
    lines = [line.rstrip() for line in ESCAPE.sub("", coloured).splitlines()]
    assert lines == ["puzzle   answer   truth   2 wrong cells", "           ><><", ""]
    papers = re.findall(r"48;5;(\d+)m", coloured.splitlines()[1])
    assert len(papers) == 3 + 3 + 2
    assert papers[0] == "16"  # black
    assert papers[3] == papers[6]  # both 1
    assert len(set(papers)) == 7  # 0, 5, 9; 1, 3, 4; and 2


def test_an_arc_answer_without_a_grid_and_a_puzzle_without_a_truth_are_shown() -> None:
    empty = arc([[1, 2]])
    empty["preds"] = np.zeros(900, np.int32)
    assert format_puzzle(empty, ARC).splitlines()[1].split()[1:3] == ["...", "12"]
    unsolved = arc([[7]])
    unsolved["labels"] = np.full(900, -100)
    assert format_puzzle(unsolved, ARC).splitlines()[:2] == ["puzzle   answer   truth   right", "059      7        ."]


# ------------------------------------------------------------------------------------------------ pictures


def test_picture_of_a_sudoku_tells_given_right_and_wrong_apart() -> None:
    """In W&B one looks for red; a cell that the model left blank is as wrong as a wrong digit."""
    sample, metadata = sudoku([2, 3, 2, 1]), sizes(4, 4)
    image = draw_puzzle(sample, metadata)

    def has(panel: int, index: int, colour: str) -> bool:
        return colour in cell(image, sample, metadata, panel, index)

    puzzle, answer, truth = range(3)
    assert has(puzzle, 0, INK)
    assert has(puzzle, 0, CLUE_PAPER)
    assert not any(has(puzzle, index, colour) for index in (1, 2) for colour in (INK, FILLED, WRONG))
    assert has(answer, 0, INK)  # given
    assert has(answer, 1, FILLED)  # found
    for index in (2, 3):  # a wrong digit, and one left blank
        assert has(answer, index, WRONG)
        assert has(answer, index, WRONG_PAPER)
    assert not has(answer, 0, WRONG)
    assert [has(truth, index, FILLED) for index in range(4)] == [False, True, True, True]
    assert not any(has(truth, index, WRONG) for index in range(4))


def test_picture_of_a_sudoku_has_headings_and_its_boxes() -> None:
    """Without boxes one can't see which rule an answer breaks; without headings, which board is the answer."""
    rng = np.random.default_rng(0)
    sample = {name: rng.integers(1, 8, 36) for name in ("inputs", "labels", "preds")}
    for box, expected in (((2, 3), ([0, 2, 4, 6], [0, 3, 6])), ((3, 2), ([0, 3, 6], [0, 2, 4, 6]))):
        image = draw_puzzle(sample, sizes(36, 8).model_copy(update={"kind": "sudoku", "box": box}))
        size = cell_size(boards_of(sample, sizes(36, 8)))
        pixels = np.asarray(image)
        ink = np.array([int(INK[i : i + 2], 16) for i in (1, 3, 5)])
        line = np.array([int(LINE[i : i + 2], 16) for i in (1, 3, 5)])
        board = pixels[MARGIN + HEADING :, MARGIN : MARGIN + 6 * size + 1]
        rows, cols = board[:, 3], board[3]  # beside the digits
        assert [i for i in range(7) if (rows[i * size] == ink).all()] == expected[0]
        assert [i for i in range(7) if (cols[i * size] == ink).all()] == expected[1]
        assert all((rows[i * size] == line).all() for i in range(7) if i not in expected[0])
        for panel in range(3):
            left = MARGIN + panel * (6 * size + MARGIN)
            heading = pixels[MARGIN : MARGIN + HEADING - 2, left : left + 6 * size]
            assert (heading < 200).any(), "no heading"


def test_picture_of_a_maze_shows_its_colours_and_crosses_wrong_cells() -> None:
    sample = maze()
    image = draw_puzzle(sample, MAZE)
    assert cell(image, sample, MAZE, 0, 0) == {MAZE_COLOURS[1]}
    assert cell(image, sample, MAZE, 2, 31) == {MAZE_COLOURS[5]}
    assert MAZE_COLOURS[3] in cell(image, sample, MAZE, 0, 30)
    right, wrong = cell(image, sample, MAZE, 1, 61), cell(image, sample, MAZE, 1, 60)
    assert right == {MAZE_COLOURS[2]}
    assert wrong >= {MAZE_COLOURS[5], INK, "#ffffff"}


def test_picture_of_an_arc_grid_is_cropped_and_in_the_palette() -> None:
    sample = arc([[1, 3]])
    image = draw_puzzle(sample, ARC)
    assert image.height < 150
    assert cell(image, sample, ARC, 0, 2) == {ARC_COLOURS[9]}
    assert cell(image, sample, ARC, 1, 0) == {ARC_COLOURS[1]}
    assert cell(image, sample, ARC, 1, 1) >= {ARC_COLOURS[3], INK, "#ffffff"}


def test_picture_of_own_puzzles_has_their_shape_and_symbols() -> None:
    """W&B would show token numbers in one row, or the model's noise beyond a smaller board."""
    sample = own([2, 1, 4, 4, 4, 1])
    image = draw_puzzle(sample, OWN)
    numbers = draw_puzzle(sample, OWN.model_copy(update={"vocabulary": None}))
    assert image.size == numbers.size == (3 * 3 * 28 + 4 * MARGIN, MARGIN + HEADING + 2 * 28 + MARGIN)
    assert WRONG in cell(image, sample, OWN, 1, 4)
    assert WRONG not in cell(image, sample, OWN, 1, 0)
    for panel in range(3):
        assert cell(image, sample, OWN, panel, 2) == cell(image, sample, OWN, panel, 5) == {"#ffffff"}
        assert INK in cell(image, sample, OWN, panel, 0)
    left, top = MARGIN, MARGIN + HEADING + 28  # the cell of `a`, which is not drawn as 3
    area = (left + 2, top + 2, left + 26, top + 26)
    assert image.crop(area).tobytes() != numbers.crop(area).tobytes()


@pytest.mark.parametrize(("length", "vocab_size"), [(900, 12), (900, 6), (81, 11), (256, 18), (40, 3000)])
def test_boards_of_any_kind_and_tokens_can_be_shown(length: int, vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    sample = {name: rng.integers(0, vocab_size, length) for name in ("inputs", "labels", "preds")}
    sample["labels"][::7] = -100
    metadata = sizes(length, vocab_size)
    assert draw_puzzle(sample, metadata).width > draw_puzzle(sample, metadata).height
    for coloured in (False, True):
        text = format_puzzle(sample, metadata, width=10_000, coloured=coloured)
        assert len(text.splitlines()) == 1 + (int(length**0.5) if length != 40 else 2)
    wrong_kind = metadata.model_copy(update={"kind": "sudoku"})  # by a builder's mistake
    draw_puzzle(sample, wrong_kind)
    format_puzzle(sample, wrong_kind)
