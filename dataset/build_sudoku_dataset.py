"""Build the Sudoku data set: puzzles from a CSV source, training puzzles multiplied by symmetries of Sudoku.

python dataset/build_sudoku_dataset.py --output-dir data/sudoku-1k-aug-1000 --subsample-size 1000 --num-aug 1000
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import numpy as np
from argdantic import ArgParser
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

if not __package__:  # run as a script: find the modules that `import dataset.…` finds, none of this folder's by itself
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.common import CsvRows, DatasetError, DatasetWriter, Symmetries, read_csv, resolve_source, run_cli

BOX, SIDE, CELLS = 3, 9, 81
VOCAB_SIZE = 11  # pad, blank, 1..9
WRITE_EXAMPLES = 1 << 15  # examples augmented at a time: bounds memory

BAD_CHARACTER = 255
DIGIT_OF_BYTE = np.full(256, BAD_CHARACTER, np.uint8)
DIGIT_OF_BYTE[ord("0") : ord("9") + 1] = np.arange(10)
DIGIT_OF_BYTE[ord(".")] = 0

cli: ArgParser = ArgParser()


class SudokuOptions(BaseModel):
    """The command line."""

    model_config = ConfigDict(extra="forbid")

    source_repo: str = Field(
        "sapientinc/sudoku-extreme", description="Hugging Face data set, or a folder with train.csv and test.csv"
    )
    output_dir: str = Field("data/sudoku-extreme-full", description="Where the data set goes")
    # Optional[…], because argdantic doesn't see through `int | None`.
    subsample_size: Optional[int] = Field(  # noqa: UP045
        None, description="Use this many random training puzzles (default: all)"
    )
    min_difficulty: Optional[int] = Field(  # noqa: UP045
        None, description="Use only puzzles rated at least this (default: all)"
    )
    num_aug: int = Field(0, description="Augmented copies of each training puzzle, besides the puzzle itself")
    seed: int = Field(42, description="Same seed, same files")


def line_permutations(lines_per_block: int, blocks: int) -> np.ndarray:
    """Every order of a Sudoku's rows (or columns) that keeps blocks together: uint8 `[n, lines_per_block * blocks]`.

    Entry [i, r] is the line that comes to place r. n = blocks! * lines_per_block! ** blocks, 1296 for 9x9.
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
    """n random symmetries of Sudoku, independent and uniform over all 9! * 2 * 1296**2.

    Digits are relabelled (0, the blank, stays); the board is transposed or not; bands, rows in a band, stacks and
    columns in a stack are permuted.
    """
    digit_map = np.zeros((n, SIDE + 1), np.uint8)
    digit_map[:, 1:] = rng.permuted(np.tile(np.arange(1, SIDE + 1, dtype=np.uint8), (n, 1)), axis=1)
    rows = LINE_PERMUTATIONS[rng.integers(len(LINE_PERMUTATIONS), size=n)]  # (n 9)
    cols = LINE_PERMUTATIONS[rng.integers(len(LINE_PERMUTATIONS), size=n)]  # (n 9)
    transposed = rng.integers(2, size=n, dtype=np.uint8)[:, None]
    # Cell (r, c) comes from (rows[r], cols[c]) of the board, or from (cols[c], rows[r]) of it where it is transposed.
    row_step, col_step = np.where(transposed, 1, SIDE).astype(np.uint8), np.where(transposed, SIDE, 1).astype(np.uint8)
    cell_source = (rows * row_step)[:, :, None] + (cols * col_step)[:, None, :]
    return Symmetries(cell_source=cell_source.reshape(n, CELLS), value_map=digit_map)


def augment(
    questions: np.ndarray, answers: np.ndarray, num_aug: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each puzzle followed by `num_aug` symmetric copies: digits uint8 `[p, 81]` -> `[p * (1 + num_aug), 81]`."""
    if not num_aug:
        return questions, answers
    symmetries = random_symmetries(rng, len(questions) * num_aug)
    copies = []
    for boards in (questions, answers):
        augmented = symmetries.apply(np.repeat(boards, num_aug, axis=0)).reshape(len(boards), num_aug, CELLS)
        copies.append(np.concatenate((boards[:, None], augmented), axis=1).reshape(-1, CELLS))
    return copies[0], copies[1]


def read_puzzles(path: Path, min_difficulty: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stream the puzzles rated at least `min_difficulty`, as digits (0 blank): pairs uint8 `[p, 81]`, `[p, 81]`.

    Raises DatasetError naming file and line for a row that isn't a puzzle with its solution.
    """
    columns = ["question", "answer"] + (["rating"] if min_difficulty is not None else [])
    for rows in read_csv(path, columns):
        questions = _parse_boards(path, rows, "question")
        answers = _parse_boards(path, rows, "answer")
        _check_solutions(path, rows, questions, answers)
        if min_difficulty is not None:
            keep = _parse_ratings(path, rows) >= min_difficulty
            questions, answers = questions[keep], answers[keep]
        yield questions, answers


def _parse_boards(path: Path, rows: CsvRows, column: str) -> np.ndarray:
    texts = rows.columns[column]
    for line, text in zip(rows.lines, texts, strict=True):
        if len(text) != CELLS:
            raise DatasetError(f"{path}:{line}: {column} has {len(text)} characters, expected {CELLS}")
    codes = np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8)
    boards = DIGIT_OF_BYTE[codes].reshape(-1, CELLS)
    bad = (boards == BAD_CHARACTER) if column == "question" else (boards - np.uint8(1) >= SIDE)
    if bad.any():
        row, cell = (int(i) for i in np.argwhere(bad)[0])
        expected = "a digit, or '.' for a blank" if column == "question" else "a digit from 1 to 9"
        raise DatasetError(
            f"{path}:{rows.lines[row]}: {column} has {texts[row][cell]!r} at position {cell + 1}, expected {expected}"
        )
    return boards


def _check_solutions(path: Path, rows: CsvRows, questions: np.ndarray, answers: np.ndarray) -> None:
    clash = (questions != 0) & (questions != answers)
    if clash.any():
        row, cell = (int(i) for i in np.argwhere(clash)[0])
        raise DatasetError(
            f"{path}:{rows.lines[row]}: the answer contradicts the question at position {cell + 1}: "
            f"{answers[row, cell]} where the clue is {questions[row, cell]}"
        )
    invalid = np.flatnonzero(~solved(answers))
    if len(invalid):
        raise DatasetError(
            f"{path}:{rows.lines[int(invalid[0])]}: the answer is not a solved Sudoku: "
            "a row, column or box lacks a digit"
        )


def solved(answers: np.ndarray) -> np.ndarray:
    """Which boards hold every digit in every row, column and box: digits uint8 `[p, 81]` -> bool `[p]`."""
    bits = (np.uint16(1) << answers.astype(np.uint16)).reshape(-1, BOX, BOX, BOX, BOX)  # (p band row stack column)
    every_digit = np.uint16((1 << (SIDE + 1)) - 2)
    units = [np.bitwise_or.reduce(bits, axis=axes).reshape(-1, SIDE) for axes in ((3, 4), (1, 2), (2, 4))]
    return (np.concatenate(units, axis=1) == every_digit).all(axis=1)


def _parse_ratings(path: Path, rows: CsvRows) -> np.ndarray:
    texts = rows.columns["rating"]
    try:
        return np.array([int(text) for text in texts])
    except ValueError:
        for line, text in zip(rows.lines, texts, strict=True):
            if not text.strip().lstrip("+-").isdecimal():
                raise DatasetError(f"{path}:{line}: rating is {text!r}, expected a whole number") from None
        raise


Chunks = list[tuple[np.ndarray, np.ndarray]]


def subsample(chunks: Iterator[tuple[np.ndarray, np.ndarray]], size: int, rng: np.random.Generator) -> Chunks:
    """A uniform random choice of `size` puzzles, in source order; all of them if there are fewer.

    Every puzzle draws a random key and the smallest keys stay, so that only `size` puzzles are ever held.
    """
    keys: np.ndarray = np.empty(0)
    kept: list[np.ndarray] = [np.empty((0, CELLS), np.uint8), np.empty((0, CELLS), np.uint8)]
    for chunk in chunks:
        keys = np.concatenate((keys, rng.random(len(chunk[0]))))
        kept = [np.concatenate(pair) for pair in zip(kept, chunk, strict=True)]
        if len(keys) > size:
            smallest = np.sort(np.argpartition(keys, size)[:size])
            keys, kept = keys[smallest], [boards[smallest] for boards in kept]
    return [(kept[0], kept[1])]


def write_split(writer: DatasetWriter, split: str, chunks: Chunks, num_aug: int, rng: np.random.Generator) -> None:
    """Augment and write puzzles: a group per original puzzle, and in it a puzzle of one example per copy."""
    copies = 1 + num_aug
    step = max(1, WRITE_EXAMPLES // copies)
    total = sum(len(questions) for questions, _ in chunks) * copies
    with tqdm(total=total, unit=" examples", unit_scale=True, desc=f"write {split}") as bar:
        for questions, answers in chunks:
            for start in range(0, len(questions), step):
                piece = slice(start, start + step)
                inputs, labels = augment(questions[piece], answers[piece], num_aug, rng)
                writer.add(
                    split,
                    inputs + np.uint8(1),  # token = digit + 1: 0 is padding, 1 a blank
                    labels + np.uint8(1),
                    puzzle_identifiers=np.zeros(len(inputs), np.int32),
                    examples_per_puzzle=np.ones(len(inputs), np.int32),
                    puzzles_per_group=np.full(len(inputs) // copies, copies, np.int32),
                )
                bar.update(len(inputs))


def build(options: SudokuOptions) -> None:
    """Build the data set that `options` describe. Raises DatasetError for a bad option, source or row."""
    if options.subsample_size is not None and options.subsample_size < 1:
        raise DatasetError(f"--subsample-size is {options.subsample_size}, expected at least 1")
    if options.num_aug < 0:
        raise DatasetError(f"--num-aug is {options.num_aug}, expected 0 or more")
    if options.seed < 0:
        raise DatasetError(f"--seed is {options.seed}, expected 0 or more")
    rng = np.random.default_rng(options.seed)
    with DatasetWriter(options.output_dir, seq_len=CELLS, vocab_size=VOCAB_SIZE) as writer:
        for split in ("train", "test"):
            path = resolve_source(options.source_repo, f"{split}.csv")
            puzzles = read_puzzles(path, options.min_difficulty)
            train = split == "train"
            size = options.subsample_size if train else None
            chunks = list(puzzles) if size is None else subsample(puzzles, size, rng)
            if not any(len(questions) for questions, _ in chunks):
                rated = "" if options.min_difficulty is None else f" rated {options.min_difficulty} or more"
                raise DatasetError(f"{path} holds no puzzles{rated}: nothing to build")
            write_split(writer, split, chunks, options.num_aug if train else 0, rng)


@cli.command(singleton=True, help="Build the Sudoku data set from a CSV source.")
def main(options: SudokuOptions) -> None:
    build(options)
    print(f"Sudoku data set written to {options.output_dir}")


if __name__ == "__main__":
    run_cli(cli)
