"""Build a data set from puzzles of your own: a CSV or JSONL file with an input, an output and perhaps a puzzle a line.

A board is a text, one cell a character and all of one length; or a grid, a JSON list of rows of numbers or short texts,
up to 30 × 30. Smaller grids are padded to the largest. Input and output of an example have the same shape.

    python dataset/build_pairs_dataset.py --input-file pairs.csv --output-dir data/pairs
"""

import sys
from pathlib import Path
from typing import Optional

if not __package__:  # run as a script: find the modules that `import dataset.…` finds, none of this folder's by itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import re

import numpy as np
from argdantic import ArgParser
from pydantic import Field

from common.errors import UserError, one_line
from common.files import expand_user
from dataset.build_options import BuildOptions
from dataset.metadata import TOKEN_DTYPE
from dataset.pairs_files import Pairs, PairsReader
from dataset.writer import DatasetWriter

DEFAULT_TEST_FRACTION = 0.1
KINDS_WITH_A_BUILDER = ("sudoku", "maze", "arc")  # whose tokens have a meaning of their own

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
    kind: str = Field("pairs", description="What the puzzles are, a word of your own for dataset.json")


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
    reader = PairsReader()
    files = [reader.read(expand_user(options.input_file))]
    if options.test_file is not None:
        files.append(reader.read(expand_user(options.test_file)))
    elif len(files[0].shapes) < 2:
        raise UserError(f"{options.input_file} holds one example, expected two or more: one is for testing")

    vocabulary, token_of = sort_symbols(reader.symbols.texts)
    all_shapes = {shape for pairs in files for shape in pairs.shapes}
    shape = max(rows for rows, _ in all_shapes), max(cols for _, cols in all_shapes)

    def laid_out(pairs: Pairs) -> Split:
        return *pairs.boards(shape, token_of), np.array(pairs.puzzles, np.int32)

    if options.test_file is None:
        fraction = DEFAULT_TEST_FRACTION if options.test_fraction is None else options.test_fraction
        train, test = divide(laid_out(files[0]), fraction, np.random.default_rng(options.seed))
    else:
        train, test = laid_out(files[0]), laid_out(files[1])

    with DatasetWriter(
        options.output_dir,
        seq_len=shape[0] * shape[1],
        vocab_size=len(vocabulary),
        kind=options.kind,
        shape=shape if reader.are_grids else None,
        vocabulary=vocabulary,
        overwrite=options.overwrite,
        command=options.command(__file__),
    ) as writer:
        writer.identifiers[:] = reader.identifiers
        for name, split in (("train", train), ("test", test)):
            add_split(writer, name, split, are_named=bool(reader.are_named))

    lines = [
        f"{len(train[0])} training and {len(test[0])} test examples written to {options.output_dir}: "
        f"{len(vocabulary) - 1} symbols, boards of "
        + (f"{shape[0]} × {shape[1]} cells" if reader.are_grids else f"{shape[1]} characters")
    ]
    seen = {(row.tobytes(), int(puzzle)) for row, puzzle in zip(train[0], train[2], strict=True)}
    known = sum((row.tobytes(), int(puzzle)) in seen for row, puzzle in zip(test[0], test[2], strict=True))
    if known:
        lines.append(f"{known} of the {len(test[0])} test inputs are training inputs as well: they test memory")
    return "\n".join(lines)


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


@cli.command(singleton=True, help="Build a data set from a CSV or JSONL file of your own.")
def main(options: PairsOptions) -> None:
    print(build(options))


if __name__ == "__main__":
    one_line(cli)()
