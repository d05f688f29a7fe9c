"""Generate a data set of small Sudoku (4x4, 6x6, up to 9x9) without any download: the two-minute demo's data.

Solution grids are drawn at random, divided between train and test, and blanked at random cells. A puzzle is kept if
naked and hidden singles alone solve it, which proves that it has exactly one solution (and makes it an easy one).

    python dataset/build_mini_sudoku_dataset.py --output-dir data/sudoku-6x6
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
from dataset.sudoku import Board
from dataset.writer import DatasetWriter

MAX_SIDE = 9
ROUND = 1 << 14  # candidates worked on at once: bounds memory
MIN_ROUND = 1 << 10
STALE_ROUNDS = 20  # after so many rounds in a row without a new solution grid, all have been found
TRIES_PER_TURN = 50  # tries per grid, on average, before the grids that had a puzzle have another
WINDOW = 8 * ROUND  # give up when fewer than 1 in 1000 of so many tries bring a new puzzle
BIT_COUNT = np.array([bin(i).count("1") for i in range(1 << MAX_SIDE)], np.uint8)

cli: ArgParser = ArgParser()


class MiniSudokuOptions(BuildOptions):
    """The options of this builder."""

    output_dir: str = Field("data/sudoku-6x6", description="Where the data set goes")
    box_rows: int = Field(2, description="Rows of a box; the board's side is box-rows * box-cols, at most 9")
    box_cols: int = Field(3, description="Columns of a box")
    num_train: int = Field(35_000, description="Training puzzles")
    num_test: int = Field(1_000, description="Test puzzles, on other solution grids than the training puzzles")
    blanks: OptionalInt = Field(None, description="Blank cells of each puzzle (default: half of the cells)")


def propagate(board: Board, masks: np.ndarray) -> np.ndarray:
    """Apply naked and hidden singles until nothing changes. Sound: it removes no digit that some solution has.

    Args:
        board: the geometry.
        masks: the digits that are possible in each cell of m boards, uint16 `[S, m]`.

    Returns:
        The new masks. A board without a solution may end with an empty cell, or with one digit in each cell that break
        a rule: see `is_solved`.
    """
    masks = masks.copy()
    units = board.units.reshape(-1, board.side)  # (3n, n)
    active = np.arange(masks.shape[1])
    while len(active):
        before = masks[:, active]  # (S, m')
        in_units = before[units]  # (3n, n, m')
        single = (in_units & (in_units - np.uint16(1))) == 0
        placed = np.bitwise_or.reduce(np.where(single, in_units, np.uint16(0)), axis=1)  # (3n, m'): digits placed
        once = np.zeros_like(placed)  # digits with at least one place left in the unit
        twice = np.zeros_like(placed)  # digits with at least two
        for k in range(board.side):
            twice |= once & in_units[:, k]
            once |= in_units[:, k]
        only = once & ~twice  # digits with one place left
        row, col, box = board.units_of.T
        now = before & ~np.where(
            (before & (before - np.uint16(1))) == 0, np.uint16(0), placed[row] | placed[col] | placed[box]
        )
        forced = now & (only[row] | only[col] | only[box])
        now = np.where(forced != 0, forced, now)
        masks[:, active] = now
        active = active[(now != before).any(axis=0)]
    return masks


def is_solved(board: Board, masks: np.ndarray) -> np.ndarray:
    """Check which boards are complete and valid: masks uint16 `[S, m]` -> bool `[m]`."""
    return (BIT_COUNT[masks] == 1).all(axis=0) & board.has_every_digit(masks.T)


def random_grids(board: Board, rng: np.random.Generator, m: int) -> np.ndarray:
    """Draw up to m solution grids.

    Fills a most constrained cell at random, propagates and repeats; boards that run into a contradiction are dropped.

    Args:
        board: the geometry.
        rng: the random generator.
        m: boards to begin with.

    Returns:
        Digits, uint8 `[<= m, S]`.
    """
    n = board.side
    masks: np.ndarray = np.full((board.cells, m), board.every_digit, np.uint16)
    first_row = rng.permuted(np.tile(np.arange(n, dtype=np.uint16)[:, None], (1, m)), axis=0)
    masks[:n] = np.uint16(1) << first_row
    grids = []
    while masks.shape[1]:
        masks = propagate(board, masks)
        counts = BIT_COUNT[masks]
        done = is_solved(board, masks)
        grids.append(np.log2(masks[:, done]).astype(np.uint8).T + np.uint8(1))
        masks = masks[:, ~done & (counts > 0).all(axis=0) & (counts > 1).any(axis=0)]
        m = masks.shape[1]
        if m:
            counts = BIT_COUNT[masks]
            tie_break = rng.random(masks.shape, dtype=np.float32)  # below 1, so the count decides first
            cell = np.argmin(np.where(counts > 1, counts + tie_break, np.float32(n + 2)), axis=0)
            board_of = np.arange(m)
            digits = masks[cell, board_of] >> np.arange(n, dtype=np.uint16)[:, None] & 1  # (n, m)
            digit = np.argmax(digits * (1 + rng.random((n, m), dtype=np.float32)), axis=0)
            masks[cell, board_of] = np.uint16(1) << digit.astype(np.uint16)
    return np.concatenate(grids)


def distinct_grids(board: Board, rng: np.random.Generator, wanted: int) -> np.ndarray:
    """Draw `wanted` distinct solution grids, or as many as are found (all 288 of a 4x4).

    Returns:
        Digits, uint8 `[<= wanted, S]`, in random order.
    """
    pool: dict[bytes, None] = {}  # in order of appearance: a set's order would change from run to run
    stale = 0
    with progress_bar(total=wanted, unit=" grids", desc="solution grids") as bar:
        while len(pool) < wanted and stale < STALE_ROUNDS:
            before = len(pool)
            for grid in random_grids(board, rng, min(ROUND, 2 * wanted)):
                pool.setdefault(grid.tobytes())
            stale = stale + 1 if len(pool) == before else 0
            bar.update(min(len(pool), wanted) - bar.n)
        bar.total = min(len(pool), wanted)
    grids = np.frombuffer(b"".join(pool), np.uint8).reshape(-1, board.cells)
    return grids[rng.permutation(len(grids))[:wanted]]


def split_grids(grids: np.ndarray, num_train: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide distinct grids between train and test: one per puzzle if they suffice, else in proportion.

    Where grids are few (4x4) and test puzzles far fewer than training puzzles, a fifth of the grids still goes to test,
    so that the test split has more than a handful.

    Args:
        grids: `[n, S]`, in random order.
        num_train: training puzzles.
        num_test: test puzzles.

    Returns:
        The grids of train and of test.
    """
    share = round(len(grids) * num_test / (num_train + num_test))
    for_test = min(num_test, max(share, len(grids) // 5, 1), len(grids) - 1)
    return grids[for_test:], grids[:for_test]


def make_puzzles(
    board: Board, rng: np.random.Generator, grids: np.ndarray, wanted: int, blanks: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Make `wanted` distinct puzzles with exactly one solution and `blanks` blank cells, spread evenly over `grids`.

    Args:
        board: the geometry.
        rng: the random generator.
        grids: solution grids, digits uint8 `[n, S]`.
        wanted: how many puzzles.
        blanks: blank cells of each.
        name: the split, for messages.

    Returns:
        Questions and answers, digits uint8 `[wanted, S]` (0 blank).

    Raises:
        UserError: if there are too few.
    """
    found: dict[bytes, int] = {}  # question -> its grid
    todo: np.ndarray = np.empty(0, np.int64)  # grids that had no puzzle yet in this turn
    tries = window_tries = window_start = 0
    with progress_bar(total=wanted, unit=" puzzles", desc=f"{name} puzzles") as bar:
        while len(found) < wanted:
            if not len(todo) or tries > TRIES_PER_TURN * len(grids):  # the next turn: a puzzle of every grid again
                todo, tries = np.arange(len(grids)), 0
            m = min(ROUND, max(len(todo), MIN_ROUND))
            owner = np.resize(todo, m)
            questions = grids[owner].copy()
            keys = rng.random((m, board.cells), dtype=np.float32)
            np.put_along_axis(questions, np.argpartition(keys, blanks - 1, axis=1)[:, :blanks], 0, axis=1)
            masks = np.where(questions == 0, board.every_digit, board.mask_of[questions]).T
            used: set[int] = set()
            for i in np.flatnonzero(is_solved(board, propagate(board, masks))).tolist():
                grid, question = int(owner[i]), questions[i].tobytes()
                if len(found) < wanted and grid not in used and question not in found:
                    found[question] = grid
                    used.add(grid)
            tried = todo[:m]
            todo = np.concatenate((todo[m:], tried[~np.isin(tried, list(used))]))
            tries, window_tries = tries + m, window_tries + m
            bar.update(len(found) - bar.n)
            if window_tries >= WINDOW and len(found) < wanted:
                if (len(found) - window_start) * 1000 < window_tries:
                    raise UserError(
                        f"found only {len(found)} of {wanted} {name} puzzles with {blanks} blanks and one solution on "
                        f"{len(grids)} grids of {board.side}x{board.side}: lower --blanks or --num-{name}"
                    )
                window_tries, window_start = 0, len(found)
    questions = np.frombuffer(b"".join(found), np.uint8).reshape(-1, board.cells)
    return questions, grids[list(found.values())]


def build(options: MiniSudokuOptions) -> None:
    """Build the data set that `options` describe.

    Raises:
        UserError: for an option or a request that can't be met.
    """
    options.check_minimums(box_rows=2, box_cols=2, num_train=1, num_test=1)
    side = options.box_rows * options.box_cols
    if side > MAX_SIDE:
        raise UserError(
            f"boxes of {options.box_rows}x{options.box_cols} make a board of {side}x{side}, expected at most "
            f"{MAX_SIDE}x{MAX_SIDE}: choose a smaller --box-rows or --box-cols"
        )
    blanks = options.blanks if options.blanks is not None else side * side // 2
    if not 1 <= blanks < side * side:
        raise UserError(f"--blanks is {blanks}, expected 1 to {side * side - 1} for {side}x{side}")

    board = Board(options.box_rows, options.box_cols)
    rng = np.random.default_rng(options.seed)
    box = (options.box_rows, options.box_cols)
    with DatasetWriter(
        options.output_dir,
        seq_len=board.cells,
        vocab_size=side + 2,
        kind="sudoku",
        box=box,
        overwrite=options.overwrite,
        command=options.command(__file__),
    ) as writer:
        grids = distinct_grids(board, rng, options.num_train + options.num_test)
        train_grids, test_grids = split_grids(grids, options.num_train, options.num_test)
        seen: set[bytes] = set()
        for split, pool, wanted in (("train", train_grids, options.num_train), ("test", test_grids, options.num_test)):
            questions, answers = make_puzzles(board, rng, pool, wanted, blanks, split)
            solutions = {answer.tobytes() for answer in answers}
            if seen & solutions:
                raise RuntimeError(f"{len(seen & solutions)} solution grids are in both train and test")
            seen |= solutions
            writer.add_boards(split, questions, answers)


@cli.command(singleton=True, help="Generate a data set of small Sudoku, offline.")
def main(options: MiniSudokuOptions) -> None:
    build(options)
    print(f"{options.num_train} training and {options.num_test} test puzzles written to {options.output_dir}")


if __name__ == "__main__":
    one_line(cli)()
