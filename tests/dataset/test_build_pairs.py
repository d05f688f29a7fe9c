"""The door for own puzzles: what a file says is what the data set holds, and what it can't say ends in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from dataset import build_pairs_dataset as pairs
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.sources import assert_one_line_error, folder_bytes, run_script


def write(path: Path, *rows: dict[str, Any] | str) -> str:
    """A JSONL file of objects, or of lines as they are."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def build(tmp_path: Path, input_file: str, **options: Any) -> Path:
    out = tmp_path / options.pop("out", "out")
    pairs.build(pairs.PairsOptions(input_file=input_file, output_dir=str(out), **options))
    return out


def boards(out: Path, split: str) -> list[tuple[str, ...]]:
    """The inputs and labels of a split in the vocabulary's symbols, padding as `~`."""
    metadata = PuzzleDataset(out, split, global_batch_size=1).metadata
    assert metadata.vocabulary is not None
    symbols = np.array(["~", *metadata.vocabulary[1:]])
    tokens = (np.load(out / split / f"all__{name}.npy") for name in ("inputs", "labels"))
    texts = (["".join(row) for row in symbols[array]] for array in tokens)
    return list(zip(*texts, strict=True))


def test_a_file_comes_back_symbol_by_symbol(tmp_path: Path) -> None:
    """A model would learn from boards that the user has not written."""
    csv = tmp_path / "pairs.csv"
    csv.write_bytes('\ufeffoutput,input\r\n"c,a","a,c"\r\n\r\nöb😀,😀bö\r\n'.encode())
    test = write(tmp_path / "test.jsonl", {"input": "a b", "output": "b a"})
    out = build(tmp_path, str(csv), test_file=test)
    assert boards(out, "train") == [("a,c", "c,a"), ("😀bö", "öb😀")]
    assert boards(out, "test") == [("a b", "b a")]
    metadata = PuzzleDataset(out, "train", global_batch_size=1).metadata
    assert metadata.vocabulary == ["", " ", ",", "a", "b", "c", "ö", "😀"]
    assert (metadata.vocab_size, metadata.seq_len, metadata.shape, metadata.kind) == (8, 3, None, "pairs")
    assert (metadata.pad_id, metadata.ignore_label_id, metadata.num_puzzle_identifiers) == (0, 0, 1)
    assert json.loads((out / "identifiers.json").read_text()) == ["<blank>"]
    assert np.load(out / "train" / "all__group_indices.npy").tolist() == [0, 1, 2]


def test_grids_of_all_shapes_are_padded_to_the_largest(tmp_path: Path) -> None:
    """Cells would slip into other rows, or the model be scored on padding."""
    csv = tmp_path / "grids.csv"
    lines = ['"[[1,10],[2,1]]","[[10,2],[1,1]]"', '"[""ab""]","[[""b"",""a""]]"', '"[[2]]","[[1]]"']
    csv.write_text("\n".join(["input,output", *lines]) + "\n")
    test = write(tmp_path / "test.jsonl", {"input": [["-3", 1, "x y"]], "output": [[1, "1", -3]]})
    out = build(tmp_path, str(csv), test_file=test)
    assert boards(out, "train") == [("110~21~", "102~11~"), ("ab~~~~", "ba~~~~"), ("2~~~~~", "1~~~~~")]
    assert boards(out, "test") == [("-31x y~~~", "11-3~~~")]
    metadata = PuzzleDataset(out, "test", global_batch_size=1).metadata
    assert metadata.shape == (2, 3)
    assert metadata.vocabulary == ["", "-3", "1", "2", "10", "a", "b", "x y"]  # numbers in order, then the rest
    labels = np.load(out / "test" / "all__labels.npy")
    assert (labels[0, 3:] == metadata.ignore_label_id).all()


def test_examples_of_a_named_puzzle_share_its_identifier(tmp_path: Path) -> None:
    """A puzzle's embedding would be trained on another one's examples."""
    named = [("rev", "ab", "ba"), (7, "ab", "ab"), ("rev", "bc", "cb"), ("up", "aa", "bb"), ("7", "cc", "cc")]
    rows = [{"input": a, "output": b, "puzzle": name} for name, a, b in named]
    train, test = write(tmp_path / "a.jsonl", *rows), write(tmp_path / "b.jsonl", rows[3], {**rows[0], "puzzle": "new"})
    out = build(tmp_path, train, test_file=test)
    names = json.loads((out / "identifiers.json").read_text())
    assert names == ["<blank>", "rev", "7", "up", "new"]
    for split, expected in (
        ("train", {"rev": rows[:4:2], "7": rows[1:5:3], "up": rows[3:4]}),
        ("test", {"up": rows[3:4]}),
    ):
        found = boards(out, split)
        arrays = {
            name: np.load(out / split / f"all__{name}.npy").tolist()
            for name in ("puzzle_identifiers", "puzzle_indices", "group_indices")
        }
        of_name = {
            names[identifier]: found[arrays["puzzle_indices"][i] : arrays["puzzle_indices"][i + 1]]
            for i, identifier in enumerate(arrays["puzzle_identifiers"])
        }
        for name, members in expected.items():
            assert of_name[name] == [(row["input"], row["output"]) for row in members]
        assert arrays["group_indices"] == list(range(len(arrays["puzzle_identifiers"]) + 1))
    assert PuzzleDataset(out, "train", global_batch_size=1).metadata.num_puzzle_identifiers == 5


def test_a_random_part_is_for_testing(tmp_path: Path) -> None:
    """A test example would be trained on, or a model be tested on none."""
    texts = [f"{i:04d}" for i in range(50)]
    source = write(tmp_path / "a.jsonl", *({"input": text, "output": text[::-1]} for text in texts))
    chosen = []
    for seed, fraction, expected in ((1, None, 5), (1, 0.1, 5), (2, 0.1, 5), (1, 0.001, 1), (1, 0.999, 49)):
        out = build(tmp_path, source, seed=seed, test_fraction=fraction, overwrite=True)
        train, test = boards(out, "train"), boards(out, "test")
        assert len(test) == expected
        assert sorted(train + test) == [(text, text[::-1]) for text in texts]
        chosen.append(test)
    assert chosen[0] == chosen[1] != chosen[2]
    assert [text for text, _ in chosen[0]] not in (texts[:5], texts[-5:])
    same = [folder_bytes(build(tmp_path, source, seed=3, out=name)) for name in ("x", "y")]
    assert same[0] == same[1]


def test_what_the_model_has_seen_is_told(tmp_path: Path) -> None:
    """A test split of training examples would show an accuracy that means nothing."""
    source = write(tmp_path / "a.jsonl", *[{"input": "ab", "output": "ba"}] * 10)
    said = pairs.build(pairs.PairsOptions(input_file=source, output_dir=str(tmp_path / "out"), test_fraction=0.3))
    assert "7 training and 3 test examples" in said
    assert "3 of the 3 test inputs are training inputs as well" in said


GOOD = {"input": "abc", "output": "cba"}
GRID = {"input": [[1, 2]], "output": [[2, 1]]}
WRONG: dict[str, tuple[list[Any], str]] = {
    "shorter output": (
        [GOOD, {"input": "abc", "output": "ab"}],
        ":2: output has 2 characters, expected 3 as the input",
    ),
    "other length": ([GOOD, "", {"input": "ab", "output": "ab"}], ":3: input has 2 characters, expected 3 as in "),
    "empty text": ([{"input": "", "output": ""}], ":1: input has 0 characters, expected 1 to "),
    "no text": ([{"input": 12, "output": "12"}], ":1: input is 12, expected a text or a list of rows"),
    "no output": ([GOOD, {"input": "abc"}], ":2: no 'output': found 'input'"),
    "further key": ([{**GOOD, "rating": 3}], ":1: unknown key 'rating': expected input, output and"),
    "no object": (["[1]"], ":1: [1] is no object"),
    "bad JSON": (["{'input': 1}"], ":1: not valid JSON: Expecting property name"),
    "deep JSON": (["[" * 100_000], ":1: not valid JSON"),
    "long number": ([f'{{"input": {"9" * 5000}}}'], ":1: not valid JSON"),
    "no example": ([""], " holds no examples"),
    "one example": ([GOOD], " holds one example, expected two or more"),
    "tab": ([{"input": "a\tc", "output": "abc"}], ":1: input has '\\t', expected symbols of 1 to 4 printable"),
    "lone surrogate": ([{"input": "a\ud800c", "output": "abc"}], ":1: input has '\\ud800', expected symbols"),
    "grid and text": ([GRID, GOOD], ":2: input is a text, expected a grid as before"),
    "text to grid": ([{"input": "ab", "output": [["a", "b"]]}], ":1: output is a grid, expected a text as before"),
    "other shape": ([{"input": [[1, 2]], "output": [[1], [2]]}], ":1: output has 2 × 1 cells, expected 1 × 2 as the"),
    "ragged": ([{"input": [[1, 2], [3]], "output": []}], ":1: input has 1 cells in row 2, expected 2 as in row 1"),
    "no rows": ([{"input": [], "output": []}], ":1: input has no rows"),
    "empty row": ([{"input": [[]], "output": [[]]}], ":1: input is 1 × 0, expected 1 × 1 to 30 × 30"),
    "too wide": ([{"input": [[0] * 31], "output": [[0] * 31]}], ":1: input is 1 × 31, expected 1 × 1 to 30 × 30"),
    "too high": ([{"input": [[0]] * 31, "output": [[0]] * 31}], ":1: input is 31 × 1, expected"),
    "no list of lists": ([{"input": [1, 2], "output": [2, 1]}], ":1: input has 1 as row 1, expected a list of"),
    "a truth": ([GRID, {"input": [[1, True]], "output": [[1, 1]]}], ":2: input has True in row 1, expected whole"),
    "a fraction": ([GRID, {"input": [[1, 1.0]], "output": [[1, 1]]}], ":2: input has 1.0 in row 1, expected whole"),
    "long symbol": ([{"input": [["abcde"]], "output": [["a"]]}], ":1: input has 'abcde', expected symbols of 1 to 4"),
    "empty symbol": ([{"input": [[""]], "output": [["a"]]}], ":1: input has '', expected symbols"),
    "256 symbols": (
        [{"input": [[30 * i + j for j in range(30)]], "output": [[0] * 30]} for i in range(9)],
        ":9: input brings '255' as one symbol too many, expected at most 255",
    ),
    "some puzzles named": ([{**GOOD, "puzzle": "a"}, GOOD], ":2: has no puzzle, unlike the examples before"),
    "some not": ([GOOD, {**GOOD, "puzzle": "a"}], ":2: names a puzzle, unlike the examples before"),
    "blank": ([{**GOOD, "puzzle": "<blank>"}], ":1: puzzle is '<blank>', expected the name of a puzzle"),
    "no name": ([{**GOOD, "puzzle": " "}], ":1: puzzle is ' ', expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_line_that_is_no_example_is_named(name: str, tmp_path: Path) -> None:
    """The user would search a file of thousands of lines for the mistake."""
    rows, message = WRONG[name]
    source = write(tmp_path / "mine.jsonl", *rows)
    with pytest.raises(UserError) as caught:
        build(tmp_path, source)
    assert str(caught.value).startswith(source + message)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", " is empty: expected a header line with the columns input, output"),
        ("input,answer\na,b\n", ":1: unknown column 'answer': expected input, output and, if wanted, puzzle"),
        ("input\na\n", ":1: no column 'output': found input"),
        ("input,output,input\na,b,c\n", ":1: a column stands there twice"),
        ("input,output\nab,ba\nab\n", ":3: 1 fields, expected 2 (input,output)"),
        ("input,output\nab,ba\nabc,ba\n", ":3: output has 2 characters, expected 3 as the input"),
        ('input,output\n"[[1,2]]","[[1,2"\n', ":2: output: not valid JSON"),
        ("input,output\n", " holds no examples"),
        ("input,output\nä,b\n".encode("latin-1"), ": not UTF-8 text after line "),
    ],
)
def test_a_csv_file_that_is_not_as_it_should_be_is_named(content: str | bytes, message: str, tmp_path: Path) -> None:
    source = tmp_path / "mine.csv"
    source.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        build(tmp_path, str(source))
    assert str(caught.value).startswith(f"{source}{message}")


def test_a_test_file_goes_on_where_the_input_file_ends(tmp_path: Path) -> None:
    """Boards of another length in the test file would be cut or refused much later, without a line."""
    source = write(tmp_path / "a.jsonl", GOOD, GOOD)
    for row, message in (
        ({"input": "ab", "output": "ab"}, f"b.jsonl:1: input has 2 characters, expected 3 as in {source}:1"),
        ({**GOOD, "puzzle": "a"}, "b.jsonl:1: names a puzzle, unlike the examples before"),
        (GRID, "b.jsonl:1: input is a grid, expected a text as before"),
    ):
        with pytest.raises(UserError, match=r"b\.jsonl:1") as caught:
            build(tmp_path, source, test_file=write(tmp_path / "b.jsonl", row))
        assert message in str(caught.value)


def test_impossible_options_are_told(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", GOOD, GOOD)
    for options, message in (
        ({"test_fraction": 0.5, "test_file": source}, "--test-fraction divides the input file, and --test-file is"),
        ({"test_fraction": 1.0}, "--test-fraction is 1.0, expected a number between 0 and 1"),
        ({"test_fraction": float("nan")}, "--test-fraction is nan"),
        ({"kind": "arc"}, "--kind is arc, whose tokens are those of its own builder"),
        ({"box_rows": 2}, "--box-rows and --box-cols are of a Sudoku: add --kind sudoku"),
        ({"kind": "sudoku", "box_rows": 2}, "--kind is sudoku: give the box as well"),
        ({"kind": "sudoku", "box_rows": 9, "box_cols": 9}, "boxes of 9 × 9 make no board"),
        ({"kind": "My Kind"}, "--kind is 'My Kind', expected one word"),
        ({"seed": -1}, "--seed is -1, expected at least 0"),
    ):
        with pytest.raises(UserError) as caught:
            build(tmp_path, source, **options)
        assert str(caught.value).startswith(message)
    with pytest.raises(UserError, match=r"expected a file whose name ends in \.csv or \.jsonl"):
        build(tmp_path, str(tmp_path))


SUDOKU = {"kind": "sudoku", "box_rows": 2, "box_cols": 2}
SOLVED = "1234341221434321"


@pytest.mark.parametrize("blank", [".", "0", "_"])
def test_own_sudoku_have_the_tokens_of_all_sudoku(blank: str, tmp_path: Path) -> None:
    """Answers would be judged by rules that take other tokens for digits."""
    rows = [{"input": blank * 3 + SOLVED[3:], "output": SOLVED}, {"input": SOLVED[:-1] + blank, "output": SOLVED}]
    out = build(tmp_path, write(tmp_path / "a.jsonl", *rows), test_file=write(tmp_path / "b.jsonl", rows[1]), **SUDOKU)
    metadata = PuzzleDataset(out, "train", global_batch_size=1).metadata
    assert (metadata.kind, metadata.box, metadata.vocab_size) == ("sudoku", (2, 2), 6)
    assert (metadata.vocabulary, metadata.shape) == (None, None)
    assert np.load(out / "train" / "all__labels.npy")[0].tolist() == [int(digit) + 1 for digit in SOLVED]
    assert np.load(out / "train" / "all__inputs.npy")[0, :4].tolist() == [1, 1, 1, 5]


def test_what_is_no_sudoku_is_told_by_its_line(tmp_path: Path) -> None:
    """A model would be trained on mistakes, and its right answers count as wrong."""
    good = {"input": "." * 16, "output": SOLVED}
    for row, message in (
        ({"input": "2" + "." * 15, "output": SOLVED}, "a.jsonl:3: output is no solution of the input, a Sudoku with"),
        ({"input": "." * 16, "output": SOLVED[:-1] + "2"}, "a.jsonl:3: output is no solution"),
        ({"input": "." * 16, "output": "." + SOLVED[1:]}, "a.jsonl:3: output is no solution"),
        ({"input": "_" * 16, "output": SOLVED}, "the symbols '.', '_' are no digits: a Sudoku of 4 × 4 has 1 to 4"),
    ):
        with pytest.raises(UserError) as caught:
            build(tmp_path, write(tmp_path / "a.jsonl", good, "", row), **SUDOKU)
        assert message in str(caught.value)
    with pytest.raises(
        UserError, match=r"a\.jsonl: boards of up to 16 characters, expected 6 × 6 cells for boxes of 2 × 3"
    ):
        build(tmp_path, write(tmp_path / "a.jsonl", good, good), **SUDOKU | {"box_cols": 3})


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    """The command of the documents would fail, or a wrong file end in a traceback."""
    (tmp_path / "pairs.csv").write_text("input,output\n" + "".join(f"{i:03d},{999 - i}\n" for i in range(100, 200)))
    command = "python dataset/build_pairs_dataset.py --input-file pairs.csv"
    result = run_script(command, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "90 training and 10 test examples written to data/pairs: 10 symbols, boards of 3 characters\n"
    )
    recorded = json.loads((tmp_path / "data" / "pairs" / "train" / "dataset.json").read_text())["command"]
    assert recorded == command
    assert_one_line_error(run_script(command + "x", tmp_path), "pairs.csvx: expected a file whose name ends in")
    assert_one_line_error(run_script(command[:-4] + ".jsonl", tmp_path), "pairs.jsonl: No such file or directory")
