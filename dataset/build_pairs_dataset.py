"""Build a data set from puzzles of your own: a CSV or JSONL file with an input, an output and perhaps a puzzle a line.

A board is a text, one cell a character and all of one length; or a grid, a JSON list of rows of numbers or short texts,
up to 30 × 30. Smaller grids are padded to the largest. Input and output of an example have the same shape.

    python dataset/build_pairs_dataset.py --input-file pairs.csv --output-dir data/pairs
"""

import sys
from pathlib import Path
from typing import Any, Optional

if not __package__:  # run as a script: find the modules that `import dataset.…` finds, none of this folder's by itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import re
from collections.abc import Sequence

import numpy as np
from argdantic import ArgParser
from pydantic import Field

from common.errors import UserError, one_line, shown
from common.files import expand_user
from dataset.build_options import BuildOptions, OptionalInt
from dataset.metadata import TOKEN_DTYPE
from dataset.pairs_files import PairsReader
from dataset.sudoku import BLANK_TOKEN, Board
from dataset.writer import DatasetWriter

DEFAULT_TEST_FRACTION = 0.1
KINDS_WITH_A_BUILDER = ("maze", "arc")  # whose tokens have a meaning of their own
MAX_SUDOKU_SIDE = 25
CHECKED_AT_ONCE = 1 << 14  # Sudoku: bounds memory

Split = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs and outputs uint8 [n, S], identifiers int32 [n]

cli: ArgParser = ArgParser()


class PairsOptions(BuildOptions):
    """The options of this builder."""

    input_file: str = Field(description="CSV or JSONL file with input, output and perhaps puzzle")
    output_dir: str = Field("data/pairs", description="Where the data set goes")
    test_file: Optional[str] = Field(None, description="Such a file with the test examples")  # noqa: UP045
    # Optional, so that one that is given beside --test-file is noticed
    test_fraction: Optional[float] = Field(  # noqa: UP045
        None, description=f"Share of the input file that is for testing (default: {DEFAULT_TEST_FRACTION})"
    )
    kind: str = Field(
        "pairs",
        description="What the puzzles are, a word of your own for dataset.json; or sudoku, whose answers are then also "
        "checked by the rules",
    )
    box_rows: OptionalInt = Field(None, description="Rows of a Sudoku's box")
    box_cols: OptionalInt = Field(None, description="Columns of a Sudoku's box")


def sort_symbols(symbols: list[str]) -> tuple[list[str], np.ndarray]:
    """Put symbols in order, numbers by their value before all others.

    Args:
        symbols: by code, distinct.

    Returns:
        The vocabulary, which begins with an empty text for padding, and the token of each code, uint8 `[symbols]`.
    """

    def place(symbol: str) -> tuple[bool, int, str]:
        is_number = re.fullmatch(r"-?[0-9]+", symbol) is not None
        return not is_number, int(symbol) if is_number else 0, symbol

    ordered = sorted(symbols, key=place)
    token_of = {symbol: token for token, symbol in enumerate(ordered, 1)}
    return ["", *ordered], np.array([token_of[symbol] for symbol in symbols], TOKEN_DTYPE)


def sudoku_tokens(symbols: list[str], side: int) -> np.ndarray:
    """Give the symbols of Sudoku their tokens: 1 for a blank, digit + 1 for a digit.

    Args:
        symbols: by code.
        side: digits of the Sudoku.

    Returns:
        The token of each code, uint8 `[symbols]`.

    Raises:
        UserError: if there are other symbols than digits and one for blanks.
    """
    token_of = {str(digit): digit + 1 for digit in range(1, side + 1)}
    others = [symbol for symbol in symbols if symbol not in token_of]
    if len(others) > 1:
        raise UserError(
            f"the symbols {', '.join(map(shown, others[:8]))} are no digits: a Sudoku of {side} × {side} has 1 to "
            f"{side} and one symbol for blanks"
        )
    return np.array([token_of.get(symbol, BLANK_TOKEN) for symbol in symbols], TOKEN_DTYPE)


def check_sudoku(board: Board, examples: Split, lines: Sequence[int], path: str) -> None:
    """Check that all outputs are solutions of their inputs.

    Raises:
        UserError: naming file and line of the first that is none.
    """
    for start in range(0, len(lines), CHECKED_AT_ONCE):
        inputs, outputs = (tokens[start : start + CHECKED_AT_ONCE] for tokens in examples[:2])
        wrong = np.flatnonzero(~board.is_valid_answer(inputs, outputs))
        if len(wrong):
            raise UserError(
                f"{path}:{lines[start + int(wrong[0])]}: output is no solution of the input, a Sudoku with boxes of "
                f"{board.box_rows} × {board.box_cols}"
            )


def divide(examples: Split, fraction: float, rng: np.random.Generator) -> tuple[Split, Split]:
    """Divide examples at random between train and test, in their order; each gets at least one.

    Args:
        examples: two or more.
        fraction: share of the test examples.
        rng: the random generator.
    """
    n = len(examples[0])
    num_test = min(max(round(n * fraction), 1), n - 1)
    is_test = np.zeros(n, bool)
    is_test[rng.permutation(n)[:num_test]] = True
    train, test = (tuple(array[chosen] for array in examples) for chosen in (~is_test, is_test))
    return (train[0], train[1], train[2]), (test[0], test[1], test[2])


def count_known(train: Split, test: Split) -> int:
    """Count the test examples whose input is a training example's of the same puzzle."""
    of_train, of_test = (
        [(row.tobytes(), puzzle) for row, puzzle in zip(inputs, puzzles.tolist(), strict=True)]
        for inputs, _, puzzles in (train, test)
    )
    seen = set(of_train)
    return sum(example in seen for example in of_test)


def add_split(writer: DatasetWriter, name: str, examples: Split, *, are_named: bool) -> None:
    """Write a split. The examples of a named puzzle are one puzzle; without names each example is one.

    Args:
        writer: where it goes.
        name: `train` or `test`.
        examples: the split.
        are_named: whether the identifiers stand for names.
    """
    inputs, outputs, identifiers = examples
    if are_named:
        order = np.argsort(identifiers, kind="stable")
        puzzles, examples_per_puzzle = np.unique(identifiers, return_counts=True)
        inputs, outputs = inputs[order], outputs[order]
    else:
        puzzles, examples_per_puzzle = identifiers, np.ones_like(identifiers)
    writer.add(
        name,
        inputs,
        outputs,
        puzzle_identifiers=puzzles,
        examples_per_puzzle=examples_per_puzzle,
        puzzles_per_group=np.ones_like(puzzles),
    )


def build(options: PairsOptions) -> str:
    """Build the data set that `options` describe.

    Returns:
        Lines for the user: what was found.

    Raises:
        UserError: for an option, or a line of a file, that is not as it should be.
    """
    options.check_minimums()
    _check(options)
    sudoku = _sudoku_of(options)
    reader = PairsReader()
    paths = [path for path in (options.input_file, options.test_file) if path is not None]
    files = [reader.read(expand_user(path)) for path in paths]
    if len(files) == 1 and len(files[0].shapes) < 2:
        raise UserError(f"{options.input_file} holds one example, expected two or more: one is for testing")

    all_shapes = {shape for pairs in files for shape in pairs.shapes}
    shape = max(rows for rows, _ in all_shapes), max(cols for _, cols in all_shapes)
    boards = f"{shape[0]} × {shape[1]} cells" if reader.are_grids else f"{shape[1]} characters"
    recorded: dict[str, Any]  # in dataset.json
    if sudoku is None:
        vocabulary, token_of = sort_symbols(reader.symbols.texts)
        recorded = {"vocab_size": len(vocabulary), "vocabulary": vocabulary}
        recorded["shape"] = shape if reader.are_grids else None
    else:
        if all_shapes != {(sudoku.side, sudoku.side) if reader.are_grids else (1, sudoku.cells)}:
            raise UserError(
                f"{' and '.join(paths)}: boards of up to {boards}, expected {sudoku.side} × {sudoku.side} cells for "
                f"boxes of {sudoku.box_rows} × {sudoku.box_cols}"
            )
        token_of = sudoku_tokens(reader.symbols.texts, sudoku.side)
        recorded = {"vocab_size": sudoku.side + 2, "box": (sudoku.box_rows, sudoku.box_cols)}

    examples: list[Split] = []
    for path, pairs in zip(paths, files, strict=True):
        examples.append((*pairs.boards(shape, token_of), np.array(pairs.puzzles, np.int32)))
        if sudoku is not None:
            check_sudoku(sudoku, examples[-1], pairs.lines, path)
    if options.test_file is None:
        fraction = DEFAULT_TEST_FRACTION if options.test_fraction is None else options.test_fraction
        train, test = divide(examples[0], fraction, np.random.default_rng(options.seed))
    else:
        train, test = examples

    with DatasetWriter(
        options.output_dir,
        seq_len=shape[0] * shape[1],
        kind=options.kind,
        overwrite=options.overwrite,
        command=options.command(__file__),
        **recorded,
    ) as writer:
        writer.identifiers[:] = reader.identifiers
        for name, split in (("train", train), ("test", test)):
            add_split(writer, name, split, are_named=bool(reader.are_named))

    said = (
        f"{len(train[0])} training and {len(test[0])} test examples written to {options.output_dir}: "
        f"{len(reader.symbols.texts)} symbols, boards of {boards}"
    )
    known = count_known(train, test)
    if known:
        said += f"\n{known} of the {len(test[0])} test inputs are training inputs as well: they test memory"
    return said


def _check(options: PairsOptions) -> None:
    if options.test_fraction is not None:
        if options.test_file is not None:
            raise UserError("--test-fraction divides the input file, and --test-file is given as well: leave one out")
        if not 0 < options.test_fraction < 1:
            raise UserError(f"--test-fraction is {options.test_fraction}, expected a number between 0 and 1")
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", options.kind):
        raise UserError(f"--kind is {options.kind!r}, expected one word of lower-case letters, digits, '_' and '-'")
    if options.kind in KINDS_WITH_A_BUILDER:
        raise UserError(f"--kind is {options.kind}, whose tokens are those of its own builder: choose another word")


def _sudoku_of(options: PairsOptions) -> Board | None:
    box = options.box_rows, options.box_cols
    if options.kind != "sudoku":
        if box != (None, None):
            raise UserError("--box-rows and --box-cols are of a Sudoku: add --kind sudoku, or leave them out")
        return None
    rows, cols = box
    if rows is None or cols is None:
        raise UserError("--kind is sudoku: give the box as well, --box-rows 3 --box-cols 3")
    if min(rows, cols) < 1 or not 2 <= rows * cols <= MAX_SUDOKU_SIDE:
        raise UserError(f"boxes of {rows} × {cols} make no board, expected one of 2 × 2 to 25 × 25 cells")
    return Board(rows, cols)


@cli.command(singleton=True, help="Build a data set from a CSV or JSONL file of your own.")
def main(options: PairsOptions) -> None:
    print(build(options))


if __name__ == "__main__":
    one_line(cli)()
