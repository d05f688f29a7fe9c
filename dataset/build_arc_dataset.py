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
from dataset.arc_augmentations import TRIES_PER_COPY, augmented_tokens, draw_augmentations
from dataset.arc_grids import SEQ_LEN, VOCAB_SIZE, augmentation_name
from dataset.arc_tasks import EVALUATION, Task, read_tasks
from dataset.build_options import BuildOptions
from dataset.writer import DatasetWriter

ARC_1_DIRS = ["dataset/raw-data/ARC-AGI/data", "dataset/raw-data/ConceptARC/corpus"]
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
