"""Puzzles that users type or hand over: what is accepted, and the one line about what is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError, explain
from dataset.metadata import PuzzleDatasetMetadata, bare_metadata
from dataset.puzzle_text import Puzzle, read_puzzles
from tests.helpers.sources import maze_rows, sudoku_rows, write_csv

SUDOKU_4 = bare_metadata(16, 6, kind="sudoku", box=(2, 2))
SUDOKU_6 = bare_metadata(36, 8, kind="sudoku", box=(2, 3))
SUDOKU_9 = bare_metadata(81, 11, kind="sudoku", box=(3, 3))
SUDOKU_16 = bare_metadata(256, 18, kind="sudoku", box=(4, 4))
MAZE = bare_metadata(16, 6, kind="maze")
TILES = bare_metadata(6, 5, kind="tiles", shape=(2, 3), vocabulary=["", "a", "b", "c", "#"])
SPACED = bare_metadata(6, 4, kind="spaced", shape=(2, 3), vocabulary=["", "x", " ", "["])
WORDS = bare_metadata(6, 5, kind="words", shape=(2, 3), vocabulary=["", "up", "down", "7", "a/b"])

QUESTION_4 = "1..4..1..1..4..1"
TOKENS_4 = [2, 1, 1, 5, 1, 1, 2, 1, 1, 2, 1, 1, 5, 1, 1, 2]
ANSWER_4 = "1234341221434321"
MAZE_ROWS = ["S #G", "  # ", "#   ", "    "]
MAZE_TOKENS = ["# SGo".index(cell) + 1 for cell in "".join(MAZE_ROWS)]


def read(given: str, of: PuzzleDatasetMetadata, stdin: str = "") -> list[Puzzle]:
    return read_puzzles(given, of, io.StringIO(stdin))


def tokens(given: str, of: PuzzleDatasetMetadata) -> list[int]:
    """Of the one puzzle that is given."""
    (puzzle,) = read(given, of)
    assert puzzle.name == "puzzle 1"
    assert puzzle.inputs.dtype == np.int32
    assert puzzle.labels is None
    return puzzle.inputs.tolist()


def refusal(given: str, of: PuzzleDatasetMetadata, stdin: str = "") -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        read(given, of, stdin)
    line = explain(caught.value) or ""
    assert "\n" not in line
    assert 0 < len(line) < 400
    return line


# ---------------------------------------------------------------------------------------------------- Sudoku


@pytest.mark.parametrize(
    "given",
    [
        QUESTION_4,
        QUESTION_4.replace(".", "0"),
        QUESTION_4.replace(".", "_"),
        " 1. .4 ..1. .1.. 4..1 ",
        "1..4\n..1.\n.1..\n4..1",
        r"1..4\n..1.\n.1..\n4..1",
        "\r\n1 . | . 4\r\n. . | 1 .\r\n----+----\r\n. 1 | . .\r\n4 . | . 1\r\n",
        "# mine\n+--+--+\n|1.|.4|\n|..|1.|\n+--+--+\n|.1|..|\n|4.|.1|\n+--+--+",
        "┌──┬──┐\n│1.│.4│\n│..│1.│\n├──┼──┤\n│.1│..│\n│4.│.1│\n└──┴──┘",
    ],
)
def test_a_sudoku_may_be_typed_in_the_usual_ways(given: str) -> None:
    """A puzzle copied from a web page or a newspaper would be refused, or another one solved."""
    assert tokens(given, SUDOKU_4) == TOKENS_4


def test_digits_from_ten_on_are_letters() -> None:
    """Puzzles of 16x16 could not be given, or G and 1 be mixed up."""
    given = "123456789ABCDEFG" + "." * 240
    assert tokens(given, SUDOKU_16)[:17] == [*range(2, 18), 1]
    assert tokens(given.lower(), SUDOKU_16) == tokens(given, SUDOKU_16)
    assert refusal(given.replace("G", "H"), SUDOKU_16) == (
        "puzzle 1: 'H' at row 1, column 16, expected a digit from 1 to 9, a letter from A to G, or '.', '0' or '_' for "
        "a blank"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("." * 81, "puzzle 1 has 81 cells, this model solves 4x4 Sudoku with 16 cells"),
        ("\n".join(["." * 9] * 9), "puzzle 1 has 81 cells, this model solves 4x4 Sudoku with 16 cells"),
        ("\n".join(["." * 4] * 3), "puzzle 1 has 12 cells (3 rows of 4), this model solves 4x4 Sudoku with 16 cells"),
        (f"{QUESTION_4}.", "puzzle 1 has 17 cells, this model solves 4x4 Sudoku with 16 cells"),
        ("1..4\n..1.\n.1.\n4..1.", "puzzle 1: row 3 has 3 cells, expected 4: 4x4 Sudoku with 16 cells are solved"),
        (
            "5" + "." * 15,
            "puzzle 1: '5' at row 1, column 1, expected a digit from 1 to 4, or '.', '0' or '_' for a blank",
        ),
        (
            "." * 9 + "é" + "." * 6,
            "puzzle 1: 'é' at row 3, column 2, expected a digit from 1 to 4, or '.', '0' or '_' for a blank",
        ),
        (
            ".11." + "." * 12,
            "puzzle 1: 1 stands twice in a row, at row 1, column 2 and at row 1, column 3: such a Sudoku has no "
            "solution",
        ),
        (
            ".3.." + "." * 8 + ".3..",
            "puzzle 1: 3 stands twice in a column, at row 1, column 2 and at row 4, column 2: such a Sudoku has no "
            "solution",
        ),
        (
            "." * 10 + "2." + "...2",
            "puzzle 1: 2 stands twice in a box, at row 3, column 3 and at row 4, column 4: such a Sudoku has no "
            "solution",
        ),
        ("", "the text holds no puzzle, expected 4x4 Sudoku with 16 cells"),
        ("----", "the text holds no puzzle, expected 4x4 Sudoku with 16 cells"),
    ],
)
def test_what_is_no_sudoku_of_this_size_is_refused(given: str, message: str) -> None:
    """A model would be asked nonsense, and its answer believed."""
    assert refusal(given, SUDOKU_4) == message


def test_letters_stand_in_messages_about_large_sudoku() -> None:
    """The digit that is twice there could not be found."""
    given = "G..............G" + "." * 240
    assert "puzzle 1: G stands twice in a row, at row 1, column 1 and at row 1, column 16" in refusal(given, SUDOKU_16)


def test_boxes_are_checked_where_their_shape_is_known() -> None:
    """Right puzzles of 6x6 would be refused, or the clash of a wrong one overlooked."""
    given = "1......1...." + "." * 24
    assert "in a box, at row 1, column 1 and at row 2, column 2" in refusal(given, SUDOKU_6)
    lying = bare_metadata(36, 8, kind="sudoku", box=(3, 2))
    assert "in a box" in refusal("1............1...." + "." * 18, lying)
    assert tokens("1............1...." + "." * 18, SUDOKU_6).count(2) == 2
    unknown = bare_metadata(36, 8, kind="sudoku")
    assert tokens(given, unknown).count(2) == 2
    assert "in a column" in refusal("1.....1....." + "." * 24, unknown)


def test_sizes_tell_a_sudoku_where_the_kind_is_missing() -> None:
    """Checkpoints of the PyTorch code name no kind: nothing could be given to them."""
    assert tokens("." * 81, bare_metadata(81, 11)) == [1] * 81
    assert refusal("." * 80, SUDOKU_9) == "puzzle 1 has 80 cells, this model solves 9x9 Sudoku with 81 cells"


# ---------------------------------------------------------------------------------------------------- mazes


def test_a_maze_may_be_typed_as_rows_or_in_one_line() -> None:
    """Spaces are cells: a maze would lose its open cells at either end of a row."""
    for text in ("".join(MAZE_ROWS), "\n".join(MAZE_ROWS), "\n".join(MAZE_ROWS) + "\n", r"\n".join(MAZE_ROWS)):
        assert tokens(text, MAZE) == MAZE_TOKENS
        assert tokens(text.replace(" ", "."), MAZE) == MAZE_TOKENS
    wide = bare_metadata(8, 6, kind="maze", shape=(2, 4))
    assert tokens("S ##\n#  G", wide) == tokens("S ###  G", wide) == [3, 2, 1, 1, 1, 2, 2, 4]


STRIPPED = ": 4x4 mazes with 16 cells are solved ('.' is an open cell as well, which no editor strips)"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["S  G", "    ", "  #", "    "],
            "puzzle 1: row 3 has 3 cells, expected 4" + STRIPPED,
        ),
        (["S G", "   ", "   "], "puzzle 1 has 9 cells, this model solves 4x4 mazes with 16 cells"),
        (["S  G", "    "], "puzzle 1 has 8 cells (2 rows of 4), this model solves 4x4 mazes with 16 cells"),
        (["S  G", "  ", "    ", "    "], "puzzle 1: row 2 has 2 cells, expected 4" + STRIPPED),
        (["S   ", "    ", "    ", "    "], "puzzle 1 has 0 cells 'G', expected one goal"),
        (["S  G", "    ", "    ", "   S"], "puzzle 1 has 2 cells 'S', expected one start"),
        (["S #G", "  # ", "  # ", "  # "], "puzzle 1: no way leads from 'S' to 'G', expected a maze with one"),
        (
            ["S  G", "    ", "  x ", "    "],
            "puzzle 1: 'x' at row 3, column 3, expected '#' (wall), ' ' or '.' (open), 'S' (start) or 'G' (goal); 'o', "
            "the path, is for the model to draw",
        ),
        (
            ["SooG", "    ", "    ", "    "],
            "puzzle 1: 'o' at row 1, column 2, expected '#' (wall), ' ' or '.' (open), 'S' (start) or 'G' (goal); 'o', "
            "the path, is for the model to draw",
        ),
    ],
)
def test_what_is_no_maze_of_this_size_is_refused(rows: list[str], message: str) -> None:
    """A model would draw a path where there is none to draw."""
    assert refusal("\n".join(rows), MAZE) == message


def test_comments_in_maze_files_are_told_from_walls(tmp_path: Path) -> None:
    """A row of walls would be dropped, or a file with a remark refused; a row with a mistake must not vanish."""
    file = tmp_path / "mazes.txt"
    walls = "\n".join(["####", "#S #", "# G#", "####"])
    file.write_text(f"# two mazes\n{walls}\n\n# the same without walls, S to G\n\n    \nS   \n   G\n    \n#sun\n")
    first, second = read(str(file), MAZE)
    assert (first.name, second.name) == (f"{file}:2", f"{file}:9")
    assert (first.inputs == 1).sum() == 12
    assert second.inputs.tolist() == [2] * 4 + [3] + [2] * 6 + [4] + [2] * 4
    assert "'x' at row 1, column 2" in refusal("#x##\n#S #\n# G#\n####", MAZE)


# ---------------------------------------------------------------------------------------------------- vocabularies


@pytest.mark.parametrize(
    ("of", "given", "expected"),
    [
        (TILES, "abc#ab", [1, 2, 3, 4, 1, 2]),
        (TILES, "abc\n#ab", [1, 2, 3, 4, 1, 2]),
        (TILES, r"a b c\n# a b", [1, 2, 3, 4, 1, 2]),
        (TILES, '[["a", "b", "c"], ["#", "a", "b"]]', [1, 2, 3, 4, 1, 2]),
        (TILES, '[["a", "b", "c"],\n ["#", "a", ""]]\n', [1, 2, 3, 4, 1, 0]),
        (TILES, '["a", "b", "c", "#", "a", "b"]', [1, 2, 3, 4, 1, 2]),
        (SPACED, "x x x ", [1, 2, 1, 2, 1, 2]),
        (SPACED, "   \nx x", [2, 2, 2, 1, 2, 1]),
        (SPACED, "[x [x ", [3, 1, 2, 3, 1, 2]),
        (WORDS, "up down up 7 7 a/b", [1, 2, 1, 3, 3, 4]),
        (WORDS, "up  down up\n7 7\ta/b", [1, 2, 1, 3, 3, 4]),
        (WORDS, '[["up", "down", "up"], [7, "7", "a/b"]]', [1, 2, 1, 3, 3, 4]),
        (bare_metadata(4, 3, vocabulary=["", "\\", "n"]), r"\n\n", [1, 2, 1, 2]),
        (bare_metadata(4, 4, vocabulary=["", "a", "b", "a"]), "abab", [1, 2, 1, 2]),
        (bare_metadata(3, 3, vocabulary=["", "a", "b"]), "aba", [1, 2, 1]),
    ],
)
def test_puzzles_of_own_kinds_are_read_by_their_symbols(
    of: PuzzleDatasetMetadata, given: str, expected: list[int]
) -> None:
    """Models trained on own data could not be asked anything, or would read other tokens than were typed."""
    assert tokens(given, of) == expected


@pytest.mark.parametrize(
    ("of", "given", "message"),
    [
        (TILES, "abcxab", "puzzle 1: 'x' at row 2, column 1, expected one of 'a' 'b' 'c' '#'"),
        (TILES, "abca", "puzzle 1 has 4 cells, this model solves 2x3 puzzles with 6 cells"),
        (TILES, "ab\nca\nab", "puzzle 1 has 6 cells (3 rows of 2), this model solves 2x3 puzzles with 6 cells"),
        (TILES, '["a", "b"', "puzzle 1 begins with '[', but is no JSON list of symbols, or of rows of them"),
        (TILES, "[" * 100_000, "puzzle 1 begins with '[', but is no JSON list of symbols, or of rows of them"),
        (TILES, "[]", "puzzle 1 has 0 cells, this model solves 2x3 puzzles with 6 cells"),
        (TILES, '[["a", "b", "c"], ["a", "b"]]', "row 2 has 2 cells, expected 3: 2x3 puzzles with 6 cells are solved"),
        (WORDS, '[["up", "up", "up"], [7, 7, true]]', "puzzle 1: 'True' at row 2, column 3, expected one of 'up'"),
        (WORDS, "[[1, [2], 3], [4, 5, 6]]", "puzzle 1: '1' at row 1, column 1, expected one of 'up' 'down' '7' 'a/b'"),
        (WORDS, "up down up 7 7 " + "x" * 5000, "puzzle 1: 'xxxxxxxxxxxxxxx"),
        (bare_metadata(4, 30, vocabulary=["", *map(str, range(29))]), "1 2 3 x", "'10' '11' …"),
        (bare_metadata(4, 3, vocabulary=["", "a"]), "aaaa", "vocabulary has 2 symbols, expected vocab_size = 3"),
        (
            bare_metadata(4, 3, vocabulary=["", "a", "b"], shape=(2, 3)),
            "aaaa",
            "shape is 2x3, expected a product of seq_len",
        ),
        (bare_metadata(4, 3, kind="own"), "aaaa", "its dataset.json names no vocabulary, the symbol of each token"),
        (bare_metadata(900, 12), "aaaa", "this model works on ARC tasks: give them as JSON"),
        (bare_metadata(36, 8, kind="sudoku", shape=(4, 9)), "1", "expected square ones with up to 35 rows"),
        (bare_metadata(12, 8, kind="sudoku"), "1", "Sudoku with seq_len = 12 can't be typed"),
        (bare_metadata(36**2, 38, kind="sudoku"), "1", "expected square ones with up to 35 rows"),
    ],
)
def test_what_is_no_puzzle_of_a_vocabulary_is_refused(of: PuzzleDatasetMetadata, given: str, message: str) -> None:
    """Tokens that the model has never seen would be asked, or a traceback shown."""
    assert message in refusal(given, of)


def test_boards_smaller_than_the_largest_are_padded_as_their_builder_does() -> None:
    """The builder's own file would be refused, though the model was trained on it."""
    (puzzle,) = read('[["a", "b"]]' if TILES.shape[0] == 1 else '[["a", "b"], ["c", "#"]]', TILES)
    assert puzzle.inputs.tolist() == [1, 2, 0, 3, 4, 0]
    with pytest.raises(UserError, match="12 cells"):
        read('[["a", "b", "c", "a"], ["a", "b", "c", "a"], ["a", "b", "c", "a"]]', TILES)


# ---------------------------------------------------------------------------------------------------- files


def test_a_text_file_has_a_puzzle_on_each_line_or_in_each_block(tmp_path: Path) -> None:
    """Puzzles would run into each other, or messages name lines where the mistake isn't."""
    block = "\n".join(QUESTION_4[start : start + 4] for start in range(0, 16, 4))
    lines, blocks = tmp_path / "lines.txt", tmp_path / "BLOCKS.TXT"
    lines.write_text(f"\ufeff# mine\n{QUESTION_4}\n{'.' * 16}\n\n{QUESTION_4}", encoding="utf-8")
    blocks.write_text(f"\n# one\n{block}\n# in between\n  \n\n{block}\n\n")
    puzzles = read(str(lines), SUDOKU_4)
    assert [puzzle.name for puzzle in puzzles] == [f"{lines}:{line}" for line in (2, 3, 5)]
    assert [puzzle.inputs.tolist() for puzzle in puzzles] == [TOKENS_4, [1] * 16, TOKENS_4]
    puzzles = read(str(blocks), SUDOKU_4)
    assert [puzzle.name for puzzle in puzzles] == [f"{blocks}:3", f"{blocks}:10"]
    assert [puzzle.inputs.tolist() for puzzle in puzzles] == [TOKENS_4] * 2
    lines.write_text(f"{QUESTION_4}\n{QUESTION_4[:-1]}\n")
    assert refusal(str(lines), SUDOKU_4) == f"{lines}:2 has 15 cells, this model solves 4x4 Sudoku with 16 cells"
    lines.write_text(f"{'.' * 81}\n{'.' * 81}\n")
    assert refusal(str(lines), SUDOKU_4) == f"{lines}:1 has 81 cells, this model solves 4x4 Sudoku with 16 cells"
    lines.write_text("# nothing\n")
    assert refusal(str(lines), SUDOKU_4) == f"{lines} holds no puzzle, expected 4x4 Sudoku with 16 cells"


def test_a_file_may_have_json_on_each_line(tmp_path: Path) -> None:
    """Files of puzzles that programs write would be refused."""
    file = tmp_path / "tiles.txt"
    file.write_text('[["a", "b", "c"], ["#", "a", "b"]]\n["a", "a", "a", "a", "a", "a"]\n')
    assert [(puzzle.name, puzzle.inputs.tolist()) for puzzle in read(str(file), TILES)] == [
        (f"{file}:1", [1, 2, 3, 4, 1, 2]),
        (f"{file}:2", [1] * 6),
    ]


def test_standard_input_is_read_like_a_text_file() -> None:
    """Programs could not pipe their puzzles in."""
    puzzles = read("-", SUDOKU_4, f"{QUESTION_4}\n\n{QUESTION_4}\n")
    assert [puzzle.name for puzzle in puzzles] == ["puzzle 1", "puzzle 2"]
    assert [puzzle.inputs.tolist() for puzzle in puzzles] == [TOKENS_4] * 2
    assert "puzzle 2 has 3 cells" in refusal("-", SUDOKU_4, f"{QUESTION_4}\n\n123\n")
    assert "the text holds no puzzle" in refusal("-", SUDOKU_4)
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_puzzles("-", SUDOKU_4, stdin)


def test_builders_csv_files_bring_the_answers(tmp_path: Path) -> None:
    """Answers that a user has could not be compared with the model's, or be those of another puzzle."""
    file = tmp_path / "test.csv"
    rows = sudoku_rows(3)
    write_csv(file, rows)
    puzzles = read(str(file), SUDOKU_9)
    assert [puzzle.name for puzzle in puzzles] == [f"{file}:{line}" for line in (2, 3, 4)]
    for puzzle, (question, answer, _) in zip(puzzles, rows, strict=True):
        assert puzzle.inputs.tolist() == [1 if cell == "." else int(cell) + 1 for cell in question]
        assert puzzle.labels is not None
        assert puzzle.labels.tolist() == [int(cell) + 1 for cell in answer]
        assert puzzle.labels.dtype == puzzle.inputs.dtype == np.int32

    mazes = maze_rows(2, seed=0)[:2]
    write_csv(file, mazes)
    for puzzle, row in zip(read(str(file), bare_metadata(900, 6, kind="maze")), mazes, strict=True):
        assert puzzle.labels is not None
        for found, text in ((puzzle.inputs, row[0]), (puzzle.labels, row[1])):
            assert found.tolist() == ["# SGo".index(cell) + 1 for cell in text]

    file.write_text('input,output\nabcabc,"[[""a"",""b"",""c""],[""a"",""b"",""#""]]"\n')
    (puzzle,) = read(str(file), TILES)
    assert puzzle.labels is not None
    assert puzzle.labels.tolist() == [1, 2, 3, 1, 2, 4]


def test_csv_files_may_lack_answers(tmp_path: Path) -> None:
    """Puzzles whose answers nobody knows yet, which a model is for, would be refused."""
    file = tmp_path / "test.csv"
    file.write_text(f"question\n{QUESTION_4}\n")
    assert [(puzzle.inputs.tolist(), puzzle.labels) for puzzle in read(str(file), SUDOKU_4)] == [(TOKENS_4, None)]
    file.write_text(f"answer,rating,question\n,1,{QUESTION_4}\n{ANSWER_4},2,{QUESTION_4}\n")
    first, second = read(str(file), SUDOKU_4)
    assert first.labels is None
    assert second.labels is not None


@pytest.mark.parametrize(
    ("of", "content", "message"),
    [
        (SUDOKU_4, b"question,answer\n1,2\n", "{file}:2 has 1 cells, this model solves 4x4 Sudoku with 16 cells"),
        (
            SUDOKU_4,
            f"question,answer\n{QUESTION_4},{ANSWER_4[:-1]}\n".encode(),
            "{file}:2: the answer has 15 cells, this model solves 4x4 Sudoku with 16 cells",
        ),
        (
            SUDOKU_4,
            f"question,answer\n{QUESTION_4},{QUESTION_4}\n".encode(),
            "{file}:2: the answer: '.' at row 1, column 2, expected a digit from 1 to 4",
        ),
        (
            SUDOKU_4,
            f"question,answer\n{QUESTION_4},2{ANSWER_4[1:]}\n".encode(),
            "{file}:2: the answer has another digit than the puzzle at row 1, column 1",
        ),
        (
            SUDOKU_4,
            f"question,answer\n{'.' * 16},{'1234' * 4}\n".encode(),
            "{file}:2: the answer is not a solved Sudoku: a row, column or box lacks a digit",
        ),
        (
            MAZE,
            b"question,answer\nSG" + b" " * 14 + b",SG#" + b" " * 13,
            "{file}:2: the answer has another cell than the puzzle at row 1, column 3",
        ),
        (
            MAZE,
            b"question,answer\nS G" + b" " * 13 + b",S G" + b" " * 13,
            "{file}:2: the answer's 'o' cells are not one path from 'S' to 'G' that visits each of them once",
        ),
        (
            MAZE,
            b"question,answer\nS G" + b" " * 13 + b",SxG" + b" " * 13,
            "{file}:2: the answer: 'x' at row 1, column 2, expected '#' (wall), ' ' or '.' (open), 'S' (start) or 'G' "
            "(goal), or 'o' (path)",
        ),
        (SUDOKU_4, b"", "{file} is empty: expected a header line with the columns question"),
        (SUDOKU_4, b"question,answer\n", "{file} holds no puzzle, expected 4x4 Sudoku with 16 cells"),
        (SUDOKU_4, b"puzzle\n1\n", "{file}:1: no column 'question': found puzzle"),
        (SUDOKU_4, b"question,\xff\n1,2\n", "{file}: not UTF-8 text after line 0: invalid start byte"),
        (SUDOKU_4, b"question\n" + b"1" * 200_000, "{file}:2: not valid CSV: field larger than field limit (131072)"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named(
    tmp_path: Path, of: PuzzleDatasetMetadata, content: bytes, message: str
) -> None:
    """Wrong answers would be taken for right ones, or the user have to search a long file for a mistake."""
    file = tmp_path / "test.csv"
    file.write_bytes(content)
    assert refusal(str(file), of) == message.format(file=file)


def test_what_is_no_file_of_puzzles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped path would be read as a puzzle of strange characters, or end in a traceback."""
    monkeypatch.chdir(tmp_path)
    for given in ("puzzles.txt", "data/puzzles", str(tmp_path / "test.CSV"), "~nobody-here/test.csv"):
        assert refusal(given, SUDOKU_4) == (
            f"{given} is missing: give a file, the puzzle itself, or - for standard input"
        )
    assert len(refusal("/" + "x" * 9000, SUDOKU_4)) < 300
    assert "is a folder, which only ARC tasks are read from" in refusal(str(tmp_path), SUDOKU_4)
    (tmp_path / "puzzles.md").write_text(QUESTION_4)
    assert (
        refusal("puzzles.md", SUDOKU_4) == "puzzles.md is neither a .txt nor a .csv file: give puzzles in one of these"
    )
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    assert refusal("bytes.txt", SUDOKU_4) == "bytes.txt: not UTF-8 text: invalid start byte"
    assert "puzzle 1 has 2 cells" in refusal("\0x", SUDOKU_4)


def test_own_puzzles_come_as_jsonl_too(tmp_path: Path) -> None:
    """The file that a data set was built from would have to be rewritten for solve.py."""
    file = tmp_path / "p.jsonl"
    file.write_text('{"input": "abcabc", "output": [["a", "b", "c"], ["a", "b", "#"]]}\n\n{"input": [["a"], ["b"]]}\n')
    first, second = read(str(file), TILES)
    assert (first.name, second.name) == (f"{file}:1", f"{file}:3")
    assert first.inputs.tolist() == [1, 2, 3, 1, 2, 3]
    assert first.labels is not None
    assert first.labels.tolist() == [1, 2, 3, 1, 2, 4]
    assert (second.inputs.tolist(), second.labels) == ([1, 0, 0, 2, 0, 0], None)
    for text, message in (("{", "not valid JSON"), ("[1]", "no object with 'input'"), ("", "holds no puzzle")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read(str(file), TILES)
