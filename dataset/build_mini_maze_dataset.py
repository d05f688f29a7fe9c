"""Generate a data set of mazes of any size without any download, of the kind of the 30x30 ones.

Walls stand at random, about as densely as the cells can stay connected, which makes ways long and winding. Start and
goal are the ends of the longest way that two searches find, and the answer is a shortest path between them.

    python dataset/build_mini_maze_dataset.py --side 12 --output-dir data/maze-12x12
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: find the modules that `import dataset.…` finds, none of this folder's by itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import numpy as np
from argdantic import ArgParser
from pydantic import Field

from common.errors import UserError, one_line
from common.progress import progress_bar
from dataset.build_options import BuildOptions, OptionalInt
from dataset.mazes import GOAL, OPEN, PATH, START, VOCAB_SIZE, WALL, distances, shortest_paths
from dataset.metadata import SPLITS
from dataset.writer import DatasetWriter

MIN_SIDE, MAX_SIDE = 4, 64
WALL_SHARE = 0.37  # of maze-30x30-hard-1k
ROUND_CELLS = 1 << 20  # worked on at once: bounds memory
WINDOW = 50_000  # give up when fewer than 1 in 1000 of so many mazes qualify

cli: ArgParser = ArgParser()


class MiniMazeOptions(BuildOptions):
    """The options of this builder."""

    output_dir: str = Field("data/maze-12x12", description="Where the data set goes")
    side: int = Field(12, description=f"Rows and columns of a maze, {MIN_SIDE} to {MAX_SIDE}")
    min_path: OptionalInt = Field(None, description="Least number of cells between start and goal (default: the side)")
    num_train: int = Field(10_000, description="Training mazes")
    num_test: int = Field(1_000, description="Test mazes, with other walls than the training mazes")


def random_mazes(rng: np.random.Generator, n: int, side: int, min_path: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw n mazes, and keep those whose path has at least `min_path` cells.

    Args:
        rng: the random generator.
        n: how many to draw.
        side: rows and columns.
        min_path: least number of cells between start and goal.

    Returns:
        Questions and answers, values uint8 `[<= n, side, side]`.
    """
    passable = rng.random((n, side, side), dtype=np.float32) >= WALL_SHARE
    start = _pick_highest(passable.astype(np.int32), rng)  # some open cell
    start = _pick_highest(distances(passable, start), rng)
    distance = distances(passable, start)
    goal = _pick_highest(distance, rng)
    every = np.arange(n)
    questions = np.where(passable, OPEN, WALL).astype(np.uint8)
    questions.reshape(n, -1)[every, start] = START
    questions.reshape(n, -1)[every, goal] = GOAL
    kept = distance.reshape(n, -1)[every, goal] > min_path
    questions = questions[kept]
    return questions, np.where(shortest_paths(distance[kept], goal[kept], rng), np.uint8(PATH), questions)


def _pick_highest(scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pick a random one of each board's cells with the highest score: integers `[n, rows, cols]` -> index `[n]`."""
    flat = scores.reshape(len(scores), -1)
    return np.argmax(flat + rng.random(flat.shape, dtype=np.float32), axis=1)


def make_mazes(options: MiniMazeOptions, min_path: int) -> tuple[np.ndarray, np.ndarray]:
    """Make num_train + num_test mazes, all with different walls.

    Args:
        options: the command line.
        min_path: least number of cells between start and goal.

    Returns:
        Questions and answers, values uint8 `[n, side * side]`.

    Raises:
        UserError: if mazes with paths of that length are too rare.
    """
    side, wanted = options.side, options.num_train + options.num_test
    rng = np.random.default_rng(options.seed)
    found: dict[bytes, tuple[bytes, bytes]] = {}  # walls -> question and answer
    round_size = ROUND_CELLS // (side * side)
    tried = window_tried = window_start = 0
    with progress_bar(total=wanted, unit=" mazes", desc=f"{side}x{side} mazes") as bar:
        while len(found) < wanted:
            # The first round shows how many qualify, the next ones bring as many as are missing.
            share = max(len(found), 1) / tried if tried else 1.0
            m = int(min(round_size, 64 + 1.1 * (wanted - len(found)) / share))
            for question, answer in zip(*random_mazes(rng, m, side, min_path), strict=True):
                if len(found) < wanted:
                    found.setdefault((question == WALL).tobytes(), (question.tobytes(), answer.tobytes()))
            tried, window_tried = tried + m, window_tried + m
            bar.update(len(found) - bar.n)
            if window_tried >= WINDOW and len(found) < wanted:
                if (len(found) - window_start) * 1000 < window_tried:
                    raise UserError(
                        f"found only {len(found)} of {wanted} different mazes of {side}x{side} with {min_path} cells "
                        f"or more between start and goal in {tried} tries: lower --min-path or --num-train"
                    )
                window_tried, window_start = 0, len(found)
    boards = [np.frombuffer(b"".join(part), np.uint8).reshape(wanted, -1) for part in zip(*found.values(), strict=True)]
    return boards[0], boards[1]


def build(options: MiniMazeOptions) -> None:
    """Build the data set that `options` describe.

    Raises:
        UserError: for an option or a request that can't be met.
    """
    options.check_minimums(side=MIN_SIDE, min_path=1, num_train=1, num_test=1)
    if options.side > MAX_SIDE:
        raise UserError(f"--side is {options.side}, expected at most {MAX_SIDE}")
    cells = options.side**2
    min_path = options.side if options.min_path is None else options.min_path
    if min_path > cells - 2:
        raise UserError(
            f"--min-path is {min_path}, expected at most {cells - 2}, the cells beside start and goal of "
            f"{options.side}x{options.side}"
        )
    with DatasetWriter(
        options.output_dir,
        seq_len=cells,
        vocab_size=VOCAB_SIZE,
        kind="maze",
        overwrite=options.overwrite,
        command=options.command(__file__),
    ) as writer:
        questions, answers = make_mazes(options, min_path)
        parts = (slice(None, options.num_train), slice(options.num_train, None))
        for split, part in zip(SPLITS, parts, strict=True):
            writer.add_boards(split, questions[part], answers[part])


@cli.command(singleton=True, help="Generate a data set of mazes, offline.")
def main(options: MiniMazeOptions) -> None:
    build(options)
    print(f"{options.num_train} training and {options.num_test} test mazes written to {options.output_dir}")


if __name__ == "__main__":
    one_line(cli)()
