"""Boards written as text, which are read again as the same boards, whatever their kind. Reading: test_puzzle_text."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from dataset import mazes
from dataset.metadata import PuzzleDatasetMetadata
from dataset.notations import notation_of
from dataset.puzzle_text import read_puzzles
from tests.helpers.configs import sizes

BOARDS = 40  # drawn for each kind


def metadata(seq_len: int, vocab_size: int, **keys: Any) -> PuzzleDatasetMetadata:
    return sizes(seq_len, vocab_size, 1).model_copy(update={"ignore_label_id": 0} | keys)


def own(*symbols: str, shape: tuple[int, int] = (2, 3)) -> PuzzleDatasetMetadata:
    """Puzzles over symbols, besides padding."""
    vocabulary = ["", *symbols]
    return metadata(shape[0] * shape[1], len(vocabulary), kind="own", vocabulary=vocabulary, shape=shape)


def read(text: str, of: PuzzleDatasetMetadata) -> np.ndarray:
    """The tokens of the one puzzle in a text."""
    (puzzle,) = read_puzzles(text, of, io.StringIO())
    return puzzle.inputs


@pytest.mark.parametrize("box", [(1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4), (5, 5), (5, 7)])
def test_a_sudoku_is_written_as_it_is_read(box: tuple[int, int]) -> None:
    """The answer of a model could not be given to another program, or be given again with some cells blank."""
    rng = np.random.default_rng(box[0])
    rows, cols = box
    side = rows * cols
    of = metadata(side * side, side + 2, kind="sudoku", box=box)
    row, col = np.mgrid[:side, :side]
    solved = (cols * (row % rows) + row // rows + col) % side
    for blanks in np.linspace(0, 1, BOARDS // 4):
        answer = rng.permutation(side)[solved].ravel() + 2
        question = np.where(rng.random(side * side) < blanks, 1, answer)
        text = notation_of(of).text(question)
        assert len(text) == side * side
        np.testing.assert_array_equal(read(text, of), question)
        told = notation_of(of).answer("a", question, notation_of(of).rows_of(notation_of(of).text(answer)))
        np.testing.assert_array_equal(told, answer)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (1, 12)])
def test_a_maze_is_written_as_it_is_read(shape: tuple[int, int]) -> None:
    """Open cells at the ends of rows would be lost, or rows of walls be taken for comments."""
    rng = np.random.default_rng(shape[0])
    rows, cols = shape
    of = metadata(rows * cols, 6, kind="maze", shape=shape)
    written = 0
    while written < BOARDS:
        maze = np.where(rng.random(shape) < 0.3, mazes.WALL, mazes.OPEN)
        start, goal = rng.permutation(maze.size)[:2]
        maze.ravel()[[start, goal]] = mazes.START, mazes.GOAL
        if mazes.steps_to_goal(maze[None], maze[None] != mazes.WALL)[0] < 0:
            continue
        written += 1
        tokens = maze.ravel() + 1
        text = notation_of(of).text(tokens)
        assert [len(line) for line in text.split("\n")] == [cols] * rows
        np.testing.assert_array_equal(read(text, of), tokens)


@pytest.mark.parametrize(
    "of",
    [
        own("a", "b", "c"),
        own("a", "b", "#", "-", "|"),
        own("x", " ", "["),
        own("1", ",", "[", "]", '"', shape=(1, 5)),  # a board may look like JSON
        own("\\", "n", "a"),
        own("a/b", "up", "7"),
        own("10", "7", "-1", shape=(3, 2)),
        own("a b", "a", "b", "c"),
        own('"', "'", "é", "😀"),
    ],
    ids=lambda of: " ".join(of.vocabulary),
)
def test_symbols_are_written_as_they_are_read(of: PuzzleDatasetMetadata) -> None:
    """An answer would be read as another board, cell for cell."""
    rng = np.random.default_rng(0)
    for lowest in (1, 0):  # without padding, and with it
        for _ in range(BOARDS):
            tokens = rng.integers(lowest, of.vocab_size, of.seq_len)
            if not tokens.any():
                continue
            text = notation_of(of).text(tokens)
            np.testing.assert_array_equal(read(text, of), tokens, err_msg=text)
            assert "\n" not in text


def test_only_boards_that_need_it_are_written_as_json() -> None:
    """Nobody wants to read brackets and quotes where letters do."""
    letters = own("a", "b", "c")
    assert notation_of(letters).text(np.array([1, 2, 3, 1, 2, 3])) == "abcabc"
    assert notation_of(own("up", "7")).text(np.array([1, 2, 2, 1, 1, 1])) == "up 7 7 up up up"
    lookalike = own("1", ",", "[", "]", shape=(1, 5))
    tokens = np.array([3, 1, 2, 1, 4])  # [1,1]
    assert json.loads(notation_of(lookalike).text(tokens)) == [["[", "1", ",", "1", "]"]]
    np.testing.assert_array_equal(read(notation_of(lookalike).text(tokens), lookalike), tokens)
    padded = notation_of(letters).text(np.array([1, 2, 0, 1, 2, 0]))
    assert json.loads(padded) == [["a", "b", ""], ["a", "b", ""]]


def test_what_no_cell_can_be_is_marked() -> None:
    """A model that has learnt nothing would end the program, or its answer look like one of blanks."""
    sudoku = metadata(16, 6, kind="sudoku", box=(2, 2))
    assert notation_of(sudoku).text(np.array([0, 1, 2, 5] * 4)) == "?.14" * 4
    with pytest.raises(UserError, match=r"'\?' at row 1, column 1"):
        read("?.14" * 4, sudoku)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (metadata(81, 6, kind="sudoku"), "vocab_size is 6, expected 11 tokens for 9x9 Sudoku"),
        (metadata(16, 5, kind="maze"), "vocab_size is 5, expected 6 tokens for 4x4 mazes"),
    ],
)
def test_kinds_need_their_tokens(of: PuzzleDatasetMetadata, message: str) -> None:
    """The model would be asked for embeddings from beyond its table, and answer anything."""
    with pytest.raises(UserError, match=message):
        notation_of(of)
    notation_of(of.model_copy(update={"vocab_size": 20}))  # more than needed is no harm
