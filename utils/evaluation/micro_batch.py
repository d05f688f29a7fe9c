"""`micro_batch_size` of an evaluation: the rows of a batch, and what they take of the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np

from common.errors import UserError
from dataset.puzzle_dataset import Batch, PuzzleDataset
from utils.config import MicroBatchSize
from utils.evaluation.evaluate import Evaluator
from utils.memory import RowMemory, device_memory, measure_rows, size_text
from utils.ranks.ranks import Ranks

_OUTER_STEPS = 3  # that are measured: in the second one the states before and after it are there


class Enough(Exception):
    """Ends an evaluation whose outer steps are measured, not its results."""


def most_rows(dataset: PuzzleDataset, max_examples: int | None) -> int:
    """Return the rows of a batch of this rank if nothing bounds them."""
    examples = dataset.num_examples if max_examples is None else min(max_examples, dataset.num_examples)
    return min(dataset.batch_size, max(1, -(-examples // dataset.num_ranks)))


def measure_outer_steps(evaluator: Evaluator, dataset: PuzzleDataset, most: int, room: int) -> RowMemory:
    """Measure what the rows of an evaluation take beside the model.

    Args:
        evaluator: the model.
        dataset: whose first examples are evaluated.
        most: rows that are wanted at most.
        room: bytes that they may take.
    """
    example = next(dataset.eval_batches())

    def compute(rows: int) -> None:
        steps = 0

        def after_step() -> None:
            nonlocal steps
            steps += 1
            if steps == _OUTER_STEPS:
                raise Enough

        drain(evaluator, iter([_with_rows(example, rows)]), after_step)

    return measure_rows(compute, most, room)


def drain(evaluator: Evaluator, batches: Iterator[Batch], after_step: Callable[[], None]) -> None:
    """Evaluate until the batches end or `after_step`, called after each outer step, raises `Enough`."""
    try:
        for _ in evaluator.results(batches, None, after_step):
            pass
    except Enough:
        pass


def _with_rows(batch: Batch, rows: int) -> Batch:
    """Return a batch of so many rows: those of `batch`, again and again."""
    chosen = np.arange(rows) % max(1, batch.num_examples)
    return replace(batch, arrays={name: array[chosen] for name, array in batch.arrays.items()}, num_examples=rows)


def rows_at_a_time(
    asked: MicroBatchSize, evaluator: Evaluator, dataset: PuzzleDataset, max_examples: int | None, ranks: Ranks
) -> int | None:
    """Return the rows of a batch of an evaluation, the same on all ranks; None: as many as the data set's have.

    Args:
        asked: with `auto` the device's memory decides.
        evaluator: the model.
        dataset: the test split.
        max_examples: only the first so many examples; None means all.
        ranks: the processes that share the test split. All have to call this.

    Raises:
        UserError: if not even one row fits.
    """
    if asked != "auto":
        return asked
    device = device_memory(ranks)
    most, room = most_rows(dataset, max_examples), device.budget - mx.get_active_memory()
    memory = measure_outer_steps(evaluator, dataset, most, room)
    rows = min(ranks.gather(memory.fitting(room, most)))
    if not rows:
        raise UserError(
            f"micro_batch_size = 'auto': one row needs {size_text(memory.of(1))}, of {size_text(max(0, room))} beside "
            "the model; micro_batch_size=1 tries it anyway"
        )
    return rows
