"""Build an ARC data set: tasks from JSON files, each with copies that are turned, mirrored and recoloured.

python dataset/build_arc_dataset.py --output-dir data/arc-aug-1000
python dataset/build_arc_dataset.py --dataset-dirs dataset/raw-data/ARC-AGI-2/data --output-dir data/arc-2-aug-1000
"""

import sys
from pathlib import Path
from typing import Optional

if not __package__:  # run as a script: find the modules that `import dataset.…` finds, none of this folder's by itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import numpy as np
from argdantic import ArgParser
from pydantic import Field

from common.errors import UserError, one_line
from common.progress import progress_bar
from dataset.arc_grids import NUM_COLOURS, SEQ_LEN, SIDE, VOCAB_SIZE, augmentation_name, place_grids
from dataset.arc_tasks import EVALUATION, Pair, Task, read_tasks
from dataset.build_options import BuildOptions
from dataset.symmetries import NUM_DIHEDRAL, dihedral, relabel
from dataset.writer import DatasetWriter

ARC_1_DIRS = ["dataset/raw-data/ARC-AGI/data", "dataset/raw-data/ConceptARC/corpus"]
TRIES_PER_COPY = 5
TURNS_SIDEWAYS = np.array([dihedral(np.empty((1, 2)), k).shape == (2, 1) for k in range(NUM_DIHEDRAL)])

# Random weights for fingerprints: of the cells (of input and output), and of the colours in them.
_weights = np.random.default_rng(0)
CELL_WEIGHT = _weights.integers(1 << 64, size=(2, SIDE, SIDE), dtype=np.uint64)
COLOUR_WEIGHT = _weights.integers(1 << 64, size=NUM_COLOURS, dtype=np.uint64)

cli: ArgParser = ArgParser()


class ArcOptions(BuildOptions):
    """The options of this builder."""

    # Optional[…], because argdantic doesn't support `| None`; and None, because it would append to a default list.
    dataset_dirs: Optional[list[str]] = Field(  # noqa: UP045
        None, description=f"Folders of tasks, all their sub-folders are read (default: {' '.join(ARC_1_DIRS)})"
    )
    output_dir: str = Field("data/arc-aug-1000", description="Where the data set goes")
    num_aug: int = Field(1000, description="Augmented copies of each task, besides the task itself")
    allow_unsolved: bool = Field(
        False, description="Take tasks whose test pairs lack an output as well, to submit them"
    )


def fingerprints(pairs: list[Pair], transforms: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Compute a fingerprint of the augmented pairs for each of n augmentations: equal for equal sets of pairs.

    Different sets have the same one with a chance of about 1 in 2**64; then a copy is left out.

    Args:
        pairs: of the task.
        transforms: integer `[n]`.
        colours: uint8 `[n, 10]`.

    Returns:
        uint64 `[n]`.
    """
    # The weights of the cells of each colour, summed: recolouring doesn't change these sums, only where they count.
    sums = np.zeros((NUM_DIHEDRAL, len(pairs), NUM_COLOURS), np.uint64)
    for k in range(NUM_DIHEDRAL):
        for number, pair in enumerate(pairs):
            for grid, weight in zip(pair, CELL_WEIGHT, strict=True):
                moved = dihedral(grid, k)
                rows, cols = moved.shape
                np.add.at(sums[k, number], moved.ravel(), weight[:rows, :cols].ravel())
    mixed = (sums[transforms] * COLOUR_WEIGHT[colours][:, None]).sum(axis=2)  # (n, pairs), modulo 2**64
    # Scrambled before they are added up, so that the sum depends on which input belongs to which output.
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(32))).sum(axis=1)


def draw_augmentations(pairs: list[Pair], num_aug: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the identity and up to `num_aug` random augmentations that all make different sets of pairs.

    Args:
        pairs: of the task.
        num_aug: how many copies are wanted.
        rng: the random generator.

    Returns:
        Transforms, integer `[n]`, and colours, uint8 `[n, 10]`, n <= 1 + num_aug. A task with few distinct copies gets
        fewer: 5 * num_aug draws are the limit.
    """
    transforms: np.ndarray = np.zeros(1, np.int64)
    colours: np.ndarray = np.arange(NUM_COLOURS, dtype=np.uint8)[None]
    tries = TRIES_PER_COPY * num_aug
    while len(transforms) <= num_aug and tries:
        n = min(tries, num_aug)
        tries -= n
        transforms = np.concatenate((transforms, rng.integers(NUM_DIHEDRAL, size=n)))
        drawn = np.tile(np.arange(NUM_COLOURS, dtype=np.uint8), (n, 1))
        drawn[:, 1:] = rng.permuted(drawn[:, 1:], axis=1)  # 0 is the background
        colours = np.concatenate((colours, drawn))
        _, first = np.unique(fingerprints(pairs, transforms, colours), return_index=True)
        kept = np.sort(first)[: 1 + num_aug]
        transforms, colours = transforms[kept], colours[kept]
    return transforms, colours


def augmented_tokens(
    pairs: list[Pair], transforms: np.ndarray, colours: np.ndarray, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the tokens of every copy of the pairs.

    Args:
        pairs: of the task.
        transforms: integer `[n]`.
        colours: uint8 `[n, 10]`.
        rng: shifts all pairs of a copy but a random one on their boards, input and output alike by a random number of
            rows and columns; None shifts none.

    Returns:
        Inputs and outputs, uint8 `[n * pairs, 900]` each, copy after copy.
    """
    n = len(transforms)
    sideways = TURNS_SIDEWAYS[transforms]
    tokens = np.empty((2, n, len(pairs), SEQ_LEN), np.uint8)
    unshifted = None if rng is None else rng.integers(len(pairs), size=n)
    for number, pair in enumerate(pairs):
        top: np.ndarray = np.zeros(n, np.int64)
        left = top
        if rng is not None:
            room_below, room_right = (SIDE - max(grid.shape[axis] for grid in pair) for axis in (0, 1))
            top = rng.integers(np.where(sideways, room_right, room_below) + 1)
            left = rng.integers(np.where(sideways, room_below, room_right) + 1)
            top, left = (np.where(unshifted == number, 0, offset) for offset in (top, left))
        for boards, grid in zip(tokens, pair, strict=True):
            moved = np.stack([dihedral(grid, k).ravel() for k in range(NUM_DIHEDRAL)])
            cells = relabel(moved[transforms], colours)  # (n, rows * cols)
            for chosen, shape in ((~sideways, grid.shape), (sideways, grid.shape[::-1])):
                grids = cells[chosen].reshape(np.count_nonzero(chosen), *shape)
                boards[chosen, number] = place_grids(grids, top[chosen], left[chosen])
    return tokens[0].reshape(-1, SEQ_LEN), tokens[1].reshape(-1, SEQ_LEN)


def write_task(writer: DatasetWriter, task: Task, num_aug: int, rng: np.random.Generator) -> int:
    """Write a task with its augmented copies: a group of puzzles, each with an identifier of its own.

    The pairs to be solved go to the split test if the task is one of the evaluation, else to train as well.

    Args:
        writer: the data set.
        task: the task.
        num_aug: how many copies are wanted.
        rng: the random generator.

    Returns:
        The number of puzzles.
    """
    transforms, colours = draw_augmentations(task.train + task.test, num_aug, rng)
    puzzles = len(transforms)
    first = len(writer.identifiers)
    writer.identifiers.append(task.task_id)
    for k, permutation in zip(transforms[1:].tolist(), colours[1:], strict=True):
        writer.identifiers.append(augmentation_name(task.task_id, k, permutation))
    parts = [("train", task.train + ([] if task.is_evaluation else task.test))]
    if task.is_evaluation:
        parts.append(("test", task.test))
        writer.test_puzzles[task.task_id] = task.raw()
    for split, pairs in parts:
        inputs, labels = augmented_tokens(pairs, transforms, colours, rng if split == "train" else None)
        writer.add(
            split,
            inputs,
            labels,
            puzzle_identifiers=np.arange(first, first + puzzles, dtype=np.int32),
            examples_per_puzzle=np.full(puzzles, len(pairs), np.int32),
            puzzles_per_group=np.array([puzzles], np.int32),
        )
    return puzzles


def build(options: ArcOptions) -> list[str]:
    """Build the data set that `options` describe.

    Returns:
        Lines for the user about what it holds.

    Raises:
        UserError: for a bad option, folder or task.
    """
    options.check_minimums(num_aug=0)
    dataset_dirs = ARC_1_DIRS if options.dataset_dirs is None else options.dataset_dirs
    if not dataset_dirs:
        raise UserError("--dataset-dirs is empty: give at least one folder of tasks")
    with DatasetWriter(
        options.output_dir,
        seq_len=SEQ_LEN,
        vocab_size=VOCAB_SIZE,
        kind="arc",
        overwrite=options.overwrite,
        command=options.command(__file__),
    ) as writer:
        tasks = read_tasks(dataset_dirs, allow_unsolved=options.allow_unsolved)
        if not any(task.is_evaluation for task in tasks):
            raise UserError(
                f"no tasks to test on in {', '.join(dataset_dirs)}: expected a sub-folder {EVALUATION!r} in one of them"
            )
        copies = {}
        total = len(tasks) * (1 + options.num_aug)
        with progress_bar(total=total, unit=" puzzles", unit_scale=True, desc="write") as bar:
            for number, task in enumerate(tasks):
                rng = np.random.default_rng([options.seed, number])
                copies[task.task_id] = write_task(writer, task, options.num_aug, rng) - 1
                bar.update(1 + options.num_aug)
    evaluation = sum(task.is_evaluation for task in tasks)
    lines = [f"{len(tasks)} tasks, {evaluation} of them to test on, as {sum(copies.values()) + len(tasks)} puzzles"]
    if unsolved := sum(not task.has_answers for task in tasks):
        lines.append(f"{unsolved} tasks have no answers: they are in the split test, and no score counts them")
    few = sorted((n, task_id) for task_id, n in copies.items() if n < options.num_aug)
    if few:
        lines.append(
            f"{len(few)} tasks have fewer than {options.num_aug} distinct copies (in {TRIES_PER_COPY} times as many "
            f"tries), from {few[0][0]} (task {few[0][1]}) to {few[-1][0]}"
        )
    return lines


@cli.command(singleton=True, help="Build an ARC data set from folders of JSON tasks.")
def main(options: ArcOptions) -> None:
    lines = build(options)
    print("\n".join([*lines, f"ARC data set written to {options.output_dir}"]))


if __name__ == "__main__":
    one_line(cli)()
