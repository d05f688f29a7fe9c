"""Build the maze data set: 30x30 mazes from a CSV source, with turned and mirrored training mazes as an option.

python dataset/build_maze_dataset.py --output-dir data/maze-30x30-hard-1k
"""

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
from dataset.mazes import ALPHABET, GOAL, OPEN, PATH, START, VOCAB_SIZE, is_path
from dataset.metadata import SPLITS
from dataset.symmetries import NUM_DIHEDRAL, Symmetries, dihedral
from dataset.writer import DatasetWriter

SIDE = 30
CELLS = SIDE * SIDE
CHUNK_ROWS = 4_000  # mazes checked at a time: bounds memory

QUESTION_VALUES = {character: value for value, character in enumerate(ALPHABET) if value != PATH}
ANSWER_VALUES = {character: value for value, character in enumerate(ALPHABET)}

cli: ArgParser = ArgParser()


class MazeOptions(BuildOptions):
    """The options of this builder."""

    source_repo: str = Field(
        "sapientinc/maze-30x30-hard-1k", description="Hugging Face data set, or a folder with train.csv and test.csv"
    )
    output_dir: str = Field("data/maze-30x30-hard-1k", description="Where the data set goes")
    subsample_size: OptionalInt = Field(None, description="Use this many random training mazes (default: all)")
    aug: bool = Field(False, description="Add the 7 turned and mirrored copies of each training maze")


def dihedral_copies(puzzles: int) -> Symmetries:
    """Return the symmetries that make the 7 turned and mirrored copies of each maze, transforms 1 to 7 in order."""
    cell = np.arange(CELLS).reshape(SIDE, SIDE)
    sources = np.stack([dihedral(cell, k).ravel() for k in range(1, NUM_DIHEDRAL)])
    unchanged = np.arange(len(ALPHABET), dtype=np.uint8)
    return Symmetries(np.tile(sources, (puzzles, 1)), np.tile(unchanged, (puzzles * len(sources), 1)))


def read_mazes(path: Path) -> Iterator[Boards]:
    """Stream the mazes of a CSV file with their answers.

    Yields:
        Questions and answers, values of dataset.mazes, uint8 `[p, 900]` each.

    Raises:
        UserError: for a row that isn't a maze with its path; the message names file and line.
    """
    for rows in read_csv(path, ["question", "answer"], chunk_rows=CHUNK_ROWS):
        questions = parse_boards(
            path, rows, "question", CELLS, QUESTION_VALUES, "'#' (wall), ' ' (open), 'S' (start) or 'G' (goal)"
        )
        answers = parse_boards(path, rows, "answer", CELLS, ANSWER_VALUES, "'#', ' ', 'S', 'G' or 'o' (path)")
        _check_paths(path, rows, questions, answers)
        yield questions, answers


def _check_paths(path: Path, rows: CsvRows, questions: np.ndarray, answers: np.ndarray) -> None:
    for value, name in ((START, "start"), (GOAL, "goal")):
        counts = (questions == value).sum(axis=1)
        wrong = np.flatnonzero(counts != 1)
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{path}:{rows.lines[row]}: question has {counts[row]} cells {ALPHABET[value]!r}, expected one {name}"
            )
    clash = (answers != questions) & ~((answers == PATH) & (questions == OPEN))
    if clash.any():
        row, cell = (int(i) for i in np.argwhere(clash)[0])
        raise UserError(
            f"{path}:{rows.lines[row]}: the answer contradicts the question at position {cell + 1}: "
            f"{ALPHABET[answers[row, cell]]!r} where the question has {ALPHABET[questions[row, cell]]!r}"
        )
    broken = np.flatnonzero(~is_path(answers.reshape(-1, SIDE, SIDE)))
    if len(broken):
        raise UserError(
            f"{path}:{rows.lines[int(broken[0])]}: the answer's 'o' cells are not one path from 'S' to 'G' "
            "that visits each of them once"
        )


def build(options: MazeOptions) -> None:
    """Build the data set that `options` describe.

    Raises:
        UserError: for a bad option, source or row.
    """
    options.check_minimums(subsample_size=1)
    rng = np.random.default_rng(options.seed)
    with DatasetWriter(
        options.output_dir,
        seq_len=CELLS,
        vocab_size=VOCAB_SIZE,
        kind="maze",
        overwrite=options.overwrite,
        command=options.command(__file__),
    ) as writer:
        for split in SPLITS:
            train = split == "train"
            path = resolve_source(options.source_repo, f"{split}.csv")
            chosen = choose(read_mazes(path), options.subsample_size if train else None, rng)
            if not chosen:
                raise UserError(f"{path} holds no mazes: nothing to build")
            write_split(writer, split, chosen, NUM_DIHEDRAL - 1 if train and options.aug else 0, dihedral_copies)


@cli.command(singleton=True, help="Build the maze data set from a CSV source.")
def main(options: MazeOptions) -> None:
    build(options)
    print(f"Maze data set written to {options.output_dir}")


if __name__ == "__main__":
    one_line(cli)()
