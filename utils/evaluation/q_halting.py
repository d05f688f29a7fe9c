"""Evaluation in which a row stops where the model halts, and a waiting example takes its slot in the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from dataset.puzzle_dataset import Batch
from models.act import Carry
from utils.evaluation.predictions import to_numpy

# (carry, batch) -> (carry, what each row adds to the metrics, outputs); `halted` of the new carry marks finished rows
HaltingStep = Callable[[Carry, dict[str, mx.array]], tuple[Carry, dict[str, mx.array], dict[str, mx.array]]]


@dataclass
class _Batch:
    """A batch of the data set, of which some rows have halted."""

    batch: Batch
    unfinished: int
    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, row: int, metrics: dict[str, np.ndarray], outputs: dict[str, np.ndarray], slot: int) -> None:
        """Add the results of a row from the slot that it was in."""
        for name, values in metrics.items():
            value = float(values[slot]) if row < self.batch.num_examples else 0.0
            self.metrics[name] = self.metrics.get(name, 0.0) + value
        for name, values in outputs.items():
            if name not in self.outputs:
                self.outputs[name] = np.zeros_like(values)
            self.outputs[name][row] = values[slot]
        self.unfinished -= 1


def finished_batches(
    step: HaltingStep,
    initial_carry: Callable[[dict[str, mx.array]], Carry],
    batches: Iterator[Batch],
    wanted: Collection[str],
    after_step: Callable[[], None],
) -> Iterator[tuple[Batch, dict[str, float], dict[str, np.ndarray]]]:
    """Take the outer steps of all examples, each until it halts.

    Every call of `step` has a batch of the same shape. An example that has halted leaves its slot to the next one that
    waits, from any batch. So only the results of the examples that overtook the slowest one are held.

    Args:
        step: the compiled step.
        initial_carry: makes the carry in which all rows have halted.
        batches: of equal shape.
        wanted: names of the outputs that are needed.
        after_step: called after each step; what it raises ends the evaluation.

    Yields:
        The batches in their order, each with metric sums over its real rows, and the wanted outputs, of which rows
        beyond `num_examples` are undefined.
    """
    begun: deque[_Batch] = deque()  # the first one is the next to be yielded
    waiting: deque[tuple[_Batch, int]] = deque()
    slots: list[tuple[_Batch, int] | None] = []
    rows: dict[str, np.ndarray] = {}  # the examples in the slots; idle slots keep their last one, whose results go
    carry: Carry | None = None
    more = True
    while True:
        while more and len(waiting) < max(1, slots.count(None)):
            batch = next(batches, None)
            more = batch is not None
            if batch is not None:
                # A batch without examples, as one of several ranks may have, takes one padding row for its results.
                begun.append(_Batch(batch, max(1, batch.num_examples)))
                waiting.extend((begun[-1], row) for row in range(begun[-1].unfinished))
                if not slots:
                    slots = [None] * len(batch.inputs)
                    rows = {name: array.copy() for name, array in batch.arrays.items()}
        for slot, taken in enumerate(slots):
            if taken is None and waiting:
                slots[slot] = source, row = waiting.popleft()
                for name, array in rows.items():
                    array[slot] = source.batch.arrays[name][row]

        if any(slots):
            device_rows = {name: mx.array(array) for name, array in rows.items()}
            carry, row_metrics, outputs = step(initial_carry(device_rows) if carry is None else carry, device_rows)
            outputs = {name: outputs[name] for name in wanted if name in outputs}
            mx.async_eval(carry, row_metrics, outputs)
            halted = np.array(carry["halted"])
            done = [(slot, *taken) for slot, taken in enumerate(slots) if taken is not None and halted[slot]]
            if done:
                found, results = ({n: to_numpy(a) for n, a in group.items()} for group in (row_metrics, outputs))
                for slot, source, row in done:
                    source.add(row, found, results, slot)
                    slots[slot] = None
            after_step()
        while begun and not begun[0].unfinished:
            first = begun.popleft()
            yield first.batch, first.metrics, first.outputs
        if not (more or begun):
            return
