"""Build the Sudoku data set: puzzles from a CSV source, training puzzles multiplied by symmetries of Sudoku.

python dataset/build_sudoku_dataset.py --output-dir data/sudoku-1k-aug-1000 --subsample-size 1000 --num-aug 1000
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a script: find the modules that `import dataset.…` finds, none of this folder's by itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import numpy as np
from argdantic import ArgParser
from pydantic import Field

from common.errors import UserError, one_line
from dataset.build_options import BuildOptions, OptionalInt
from dataset.csv_puzzles import Boards, CsvRows, choose, parse_boards, read_csv, resolve_source, write_split
from dataset.metadata import SPLITS
from dataset.sudoku import Board
from dataset.symmetries import Symmetries, sudoku_cell_sources
from dataset.writer import DatasetWriter

BOX = 3
BOARD = Board(BOX, BOX)
SIDE, CELLS = BOARD.side, BOARD.cells
VOCAB_SIZE = 11  # pad, blank, 1..9
DIGITS = {str(digit): digit for digit in range(1, SIDE + 1)}
BLANKS = {".": 0, "0": 0}

cli: ArgParser = ArgParser()


class SudokuOptions(BuildOptions):
    """The options of this builder."""

    source_repo: str = Field(
        "sapientinc/sudoku-extreme", description="Hugging Face data set, or a folder with train.csv and test.csv"
    )
    output_dir: str = Field("data/sudoku-extreme-full", description="Where the data set goes")
    subsample_size: OptionalInt = Field(None, description="Use this many random training puzzles (default: all)")
    min_difficulty: OptionalInt = Field(None, description="Use only puzzles rated at least this (default: all)")
    num_aug: int = Field(0, description="Augmented copies of each training puzzle, besides the puzzle itself")


def line_permutations(lines_per_block: int, blocks: int) -> np.ndarray:
    """List every order of a Sudoku's rows (or columns) that keeps blocks together.

    Returns:
        uint8 `[n, lines_per_block * blocks]`; entry [i, r] is the line that moves to place r.
        n = blocks! * lines_per_block! ** blocks, 1296 for 9x9.
    """
    within = np.array(list(itertools.permutations(range(lines_per_block))), np.uint8)
    table = [
        np.concatenate([block * lines_per_block + within[w] for block, w in zip(order, inner, strict=True)])
        for order in itertools.permutations(range(blocks))
        for inner in itertools.product(range(len(within)), repeat=blocks)
    ]
    return np.array(table, np.uint8)


LINE_PERMUTATIONS = line_permutations(BOX, BOX)


def random_symmetries(rng: np.random.Generator, n: int) -> Symmetries:
    """Draw n symmetries of Sudoku, independent and uniform over all 9! * 2 * 1296**2.

    Digits are relabelled (0, the blank, stays); the board is transposed or not; bands, rows in a band, stacks and
    columns in a stack are permuted.
    """
    digit_map = np.zeros((n, SIDE + 1), np.uint8)
    digit_map[:, 1:] = rng.permuted(np.tile(np.arange(1, SIDE + 1, dtype=np.uint8), (n, 1)), axis=1)
    rows = LINE_PERMUTATIONS[rng.integers(len(LINE_PERMUTATIONS), size=n)]  # (n 9)
    cols = LINE_PERMUTATIONS[rng.integers(len(LINE_PERMUTATIONS), size=n)]  # (n 9)
    transposed = rng.integers(2, size=n, dtype=np.uint8) == 1
    return Symmetries(cell_source=sudoku_cell_sources(rows, cols, transposed), value_map=digit_map)


def read_puzzles(path: Path, min_difficulty: int | None) -> Iterator[Boards]:
    """Stream the puzzles of a CSV file that are rated at least `min_difficulty`.

    Args:
        path: the file.
        min_difficulty: the least rating; None takes all.

    Yields:
        Questions and answers, digits uint8 `[p, 81]` each (0 blank).

    Raises:
        UserError: for a row that isn't a puzzle with its solution; the message names file and line.
    """
    columns = ["question", "answer"] + (["rating"] if min_difficulty is not None else [])
    for rows in read_csv(path, columns):
        questions = parse_boards(path, rows, "question", CELLS, DIGITS | BLANKS, "a digit, or '.' for a blank")
        answers = parse_boards(path, rows, "answer", CELLS, DIGITS, "a digit from 1 to 9")
        _check_solutions(path, rows, questions, answers)
        if min_difficulty is not None:
            keep = _parse_ratings(path, rows) >= min_difficulty
            questions, answers = questions[keep], answers[keep]
        yield questions, answers


def _check_solutions(path: Path, rows: CsvRows, questions: np.ndarray, answers: np.ndarray) -> None:
    clash = (questions != 0) & (questions != answers)
    if clash.any():
        row, cell = (int(i) for i in np.argwhere(clash)[0])
        raise UserError(
            f"{path}:{rows.lines[row]}: the answer contradicts the question at position {cell + 1}: "
            f"{answers[row, cell]} where the clue is {questions[row, cell]}"
        )
    invalid = np.flatnonzero(~BOARD.is_solution(answers))
    if len(invalid):
        raise UserError(
            f"{path}:{rows.lines[int(invalid[0])]}: the answer is not a solved Sudoku: "
            "a row, column or box lacks a digit"
        )


def _parse_ratings(path: Path, rows: CsvRows) -> np.ndarray:
    texts = rows.columns["rating"]
    try:
        return np.array([int(text) for text in texts])
    except ValueError:
        for line, text in zip(rows.lines, texts, strict=True):
            if not text.strip().lstrip("+-").isdecimal():
                raise UserError(f"{path}:{line}: rating is {text!r}, expected a whole number") from None
        raise


def build(options: SudokuOptions) -> None:
    """Build the data set that `options` describe.

    Raises:
        UserError: for a bad option, source or row.
    """
    options.check_minimums(subsample_size=1, num_aug=0)
    rng = np.random.default_rng(options.seed)

    def draw(puzzles: int) -> Symmetries:
        return random_symmetries(rng, puzzles * options.num_aug)

    with DatasetWriter(
        options.output_dir,
        seq_len=CELLS,
        vocab_size=VOCAB_SIZE,
        kind="sudoku",
        box=(BOX, BOX),
        overwrite=options.overwrite,
        command=options.command(__file__),
    ) as writer:
        for split in SPLITS:
            train = split == "train"
            path = resolve_source(options.source_repo, f"{split}.csv")
            puzzles = read_puzzles(path, options.min_difficulty)
            chosen = choose(puzzles, options.subsample_size if train else None, rng)
            if not any(len(questions) for questions, _ in chosen):
                rated = "" if options.min_difficulty is None else f" rated {options.min_difficulty} or more"
                raise UserError(f"{path} holds no puzzles{rated}: nothing to build")
            write_split(writer, split, chosen, options.num_aug if train else 0, draw)


@cli.command(singleton=True, help="Build the Sudoku data set from a CSV source.")
def main(options: SudokuOptions) -> None:
    build(options)
    print(f"Sudoku data set written to {options.output_dir}")


if __name__ == "__main__":
    one_line(cli)()
