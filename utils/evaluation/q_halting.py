"""Evaluation in which a row stops when the model says so, and a waiting example takes its seat in the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from dataset.puzzle_dataset import Batch
from models.hrm.hrm_act_v1 import Carry
from utils.evaluation.predictions import to_numpy

# (carry, batch) -> (carry, what each row adds to the metrics, outputs); a row has halted where the new carry says so
HaltingStep = Callable[[Carry, dict[str, mx.array]], tuple[Carry, dict[str, mx.array], dict[str, mx.array]]]


@dataclass
class _Batch:
    """A batch of the data set, some of whose rows have been thought about to their end."""

    batch: Batch
    unfinished: int
    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, row: int, metrics: dict[str, np.ndarray], outputs: dict[str, np.ndarray], seat: int) -> None:
        """Take the results of a row from the seat where it was thought about."""
        for name, values in metrics.items():
            value = float(values[seat]) if row < self.batch.num_examples else 0.0
            self.metrics[name] = self.metrics.get(name, 0.0) + value
        for name, values in outputs.items():
            if name not in self.outputs:
                self.outputs[name] = np.zeros_like(values)
            self.outputs[name][row] = values[seat]
        self.unfinished -= 1


def finished_batches(
    step: HaltingStep,
    initial_carry: Callable[[dict[str, mx.array]], Carry],
    batches: Iterator[Batch],
    wanted: Collection[str],
    after_step: Callable[[], None],
) -> Iterator[tuple[Batch, dict[str, float], dict[str, np.ndarray]]]:
    """Think about all examples of `batches`, each as long as it takes; yields the batches again, in their order.

    Every call of `step` has a batch of the same shape. An example that has halted leaves its seat to the next one that
    waits, from whatever batch. So no more results are held than those of the examples that overtook the slowest one.

    Args:
        step: the compiled step.
        initial_carry: makes the carry in which all rows have halted.
        batches: of equal shape.
        wanted: names of the outputs that are needed.
        after_step: called after each step; what it raises ends the evaluation.

    Yields:
        A batch, metric sums over its real rows, and the wanted outputs, whose rows beyond `num_examples` mean nothing.
    """
    begun: deque[_Batch] = deque()  # the first one is the next to be yielded
    waiting: deque[tuple[_Batch, int]] = deque()
    seats: list[tuple[_Batch, int] | None] = []
    rows: dict[str, np.ndarray] = {}  # what is sat down; idle seats keep what was there, and nobody looks at it
    carry: Carry | None = None
    more = True
    while True:
        while more and len(waiting) < max(1, seats.count(None)):
            batch = next(batches, None)
            more = batch is not None
            if batch is not None:
                # Of a batch without examples, as one of several ranks may have, a padding row shows what results are.
                begun.append(_Batch(batch, max(1, batch.num_examples)))
                waiting.extend((begun[-1], row) for row in range(begun[-1].unfinished))
                if not seats:
                    seats = [None] * len(batch.inputs)
                    rows = {name: array.copy() for name, array in batch.arrays.items()}
        for seat, taken in enumerate(seats):
            if taken is None and waiting:
                seats[seat] = source, row = waiting.popleft()
                for name, array in rows.items():
                    array[seat] = source.batch.arrays[name][row]

        if any(seats):
            device_rows = {name: mx.array(array) for name, array in rows.items()}
            carry, row_metrics, outputs = step(initial_carry(device_rows) if carry is None else carry, device_rows)
            outputs = {name: outputs[name] for name in wanted if name in outputs}
            mx.async_eval(carry, row_metrics, outputs)
            halted = np.array(carry["halted"])
            done = [(seat, *taken) for seat, taken in enumerate(seats) if taken is not None and halted[seat]]
            if done:
                found, results = ({n: to_numpy(a) for n, a in group.items()} for group in (row_metrics, outputs))
                for seat, source, row in done:
                    source.add(row, found, results, seat)
                    seats[seat] = None
            after_step()
        while begun and not begun[0].unfinished:
            first = begun.popleft()
            yield first.batch, first.metrics, first.outputs
        if not (more or begun):
            return
