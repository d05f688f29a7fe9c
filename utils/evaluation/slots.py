"""Evaluation in slots: each row of the batch is a seat for a sample of a puzzle, and for the next when that has ended.

So a row that halts early, or an answer that is verified, leaves its share of the compute to the puzzles that need it.
The results do not depend on who sat where: the samples of a puzzle count in the order of their numbers, as if each had
waited for the one before it. Under a judge that may be satisfied early it does wait, unless a seat would be empty.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from dataset.puzzle_dataset import Batch
from dataset.relabelling import Relabelling
from models.variation import SAMPLE_KEY
from utils.evaluation.curve import Found
from utils.evaluation.judges import Sample
from utils.evaluation.predictions import to_numpy
from utils.evaluation.search import Search
from utils.evaluation.slot_step import Slots

_MOST_BATCHES = 32  # under way: bounds memory where one puzzle holds up the others' results
OF_SEARCH = ("any_exact", "row_steps")  # metrics of an evaluation that thinks longer
OF_SAMPLES = ("preds", "q_halt_logits", "steps", "movement", "halts")  # outputs that samples need


class SlotPuzzle:
    """A puzzle under way.

    Args:
        batch: that it is from.
        row: its place there.
        search: how far to think.

    Attributes:
        begun: the number of samples that have got a seat.
        judged: the number of samples that have counted, in order.
        is_done: whether no further sample counts.
        judge: of the samples.
        found: with the samples that have counted.
        kept: these samples, with `Search.keep_samples`.
    """

    def __init__(self, batch: SlotBatch, row: int, search: Search):
        self.batch, self.row, self._search = batch, row, search
        # a padding row stands in for the results of a batch without examples
        self.samples = search.thinking.samples if row < batch.batch.num_examples else 1
        self.judge = search.judge()
        self.begun = self.judged = 0
        self.found = Found()
        self.is_done = False
        self.kept: list[Sample] = []
        self._early: dict[int, Sample] = {}  # that have ended before one with a lower number

    @property
    def inputs(self) -> np.ndarray:
        """Its tokens, int32 `[s]`."""
        return self.batch.batch.inputs[self.row]

    @property
    def may_begin(self) -> bool:
        """Whether another sample can be seated."""
        return not self.is_done and self.begun < self.samples

    def begin(self) -> int:
        """Return the number of the next sample, which gets a seat."""
        self.begun += 1
        return self.begun - 1

    def end(self, sample: Sample) -> None:
        """Take a sample that has ended, and count it when its turn has come."""
        if self.is_done:
            return
        self._early[sample.number] = sample
        while not self.is_done and (following := self._early.pop(self.judged, None)) is not None:
            self.judge.add(following)
            self._count(following)
            self.is_done = self.judge.is_satisfied or self.judged == self.samples
        if self.is_done:
            self._finish()

    def _count(self, sample: Sample) -> None:
        """Take note of what is known after one more sample."""
        before, best = self.found, self.judge.best
        self.found = Found(
            exact=best.exact,
            verified=float(best.verdict.holds),
            any_exact=max(before.any_exact, sample.exact),
            row_steps=before.row_steps + sample.steps,
        )
        if self.row < self.batch.batch.num_examples and sample.metrics["count"]:
            self._search.curve.add(self.judged, before, self.found)
        if self._search.keep_samples:
            self.kept.append(sample)
        self.judged += 1

    def _finish(self) -> None:
        best = self.judge.best
        metrics, outputs = best.metrics, best.outputs
        if not self._search.thinking.is_plain:
            counted = metrics["count"]
            values = self.found.any_exact, counted * self.found.row_steps
            metrics = metrics | dict(zip(OF_SEARCH, values, strict=True))
        if self._search.keep_samples:
            outputs = outputs | sample_arrays(self.kept, self._search.thinking.samples)
        self.batch.add(self.row, metrics, outputs)


def sample_arrays(samples: list[Sample], number: int) -> dict[str, np.ndarray]:
    """Return the arrays of a puzzle's samples, `[number, …]`, zeros for those that were not needed."""
    steps = np.zeros(number, np.int32)
    q_halt, movement = np.zeros((2, number), np.float32)
    preds = np.zeros((number, *samples[0].preds.shape), np.int32)
    for sample in samples:
        place = sample.number
        steps[place], preds[place] = sample.steps, sample.preds
        q_halt[place], movement[place] = (sample.outputs[name] for name in ("q_halt_logits", "movement"))
    return {
        "sample_preds": preds,
        "sample_q_halt_logits": q_halt,
        "sample_movement": movement,
        "sample_steps": steps,
    }


@dataclass
class SlotBatch:
    """A batch of the data set, and the results of the puzzles that are done.

    Attributes:
        batch: of the data set.
        puzzles: its real rows; of a batch without any, a padding row.
        done: how many of them are done.
        metrics: sums over the real rows.
        outputs: the wanted ones of the chosen samples, `[b, …]`; rows beyond `num_examples` are undefined.
    """

    batch: Batch
    puzzles: list[SlotPuzzle] = field(default_factory=list)
    done: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether the results are complete."""
        return self.done == len(self.puzzles)

    def add(self, row: int, metrics: dict[str, float], outputs: dict[str, np.ndarray]) -> None:
        """Add the results of a puzzle."""
        for name, value in metrics.items():
            value = value if row < self.batch.num_examples else 0.0
            self.metrics[name] = self.metrics.get(name, 0.0) + value
        for name, values in outputs.items():
            if name not in self.outputs:
                self.outputs[name] = np.zeros((len(self.batch.inputs), *values.shape), values.dtype)
            self.outputs[name][row] = values
        self.done += 1


class _Queue:
    """The puzzles that are under way, and whose sample is the next to get a seat.

    Args:
        batches: of equal shape.
        search: how far to think.

    Attributes:
        begun: the batches under way, the first one being the next to be yielded.
    """

    def __init__(self, batches: Iterator[Batch], search: Search):
        self.begun: deque[SlotBatch] = deque()
        self._ready: deque[SlotPuzzle] = deque()  # whose next sample is needed
        self._batches, self._search = batches, search
        self._unread = True

    def take(self, number: int) -> list[tuple[SlotPuzzle, int]]:
        """Return the samples that get the seats that are free: puzzles, and for each the sample's number.

        First come puzzles that need another sample, then new ones; and where there are none, those that may yet need
        another sample, with the fewest first.

        Args:
            number: of free seats.
        """
        taken: list[tuple[SlotPuzzle, int]] = []
        while len(taken) < number and (self._ready or self._read()):
            puzzle = self._ready[0]
            taken.append((puzzle, puzzle.begin()))
            if self._search.leaves_early or not puzzle.may_begin:
                self._ready.popleft()
        if len(taken) < number and self._search.thinking.samples > 1:
            puzzles = (puzzle for batch in self.begun for puzzle in batch.puzzles if puzzle.may_begin)
            waiting = [(puzzle.begun, place, puzzle) for place, puzzle in enumerate(puzzles)]
            heapq.heapify(waiting)
            while len(taken) < number and waiting:
                _, place, puzzle = heapq.heappop(waiting)
                taken.append((puzzle, puzzle.begin()))
                if puzzle.may_begin:
                    heapq.heappush(waiting, (puzzle.begun, place, puzzle))
        return taken

    def ended(self, puzzle: SlotPuzzle) -> None:
        """Put a puzzle first whose samples so far have all ended, in vain, and which has waited for that."""
        if self._search.leaves_early and puzzle.may_begin and puzzle.begun == puzzle.judged:
            self._ready.appendleft(puzzle)

    def _read(self) -> bool:
        """Begin another batch, if there is one and not too many are under way."""
        if self._unread and len(self.begun) < _MOST_BATCHES:
            batch = next(self._batches, None)
            self._unread = batch is not None
            if batch is not None:
                begun = SlotBatch(batch)
                begun.puzzles = [SlotPuzzle(begun, row, self._search) for row in range(max(1, batch.num_examples))]
                self.begun.append(begun)
                self._ready.extend(begun.puzzles)
                return True
        return False

    def finished(self) -> Iterator[SlotBatch]:
        """Yield, and forget, the first batches that are done."""
        while self.begun and self.begun[0].is_done:
            yield self.begun.popleft()

    @property
    def is_empty(self) -> bool:
        """Whether all batches have been read and yielded."""
        return not (self.begun or self._unread)


@dataclass
class _Seat:
    """A sample in a slot, and with `Search.film` what it predicted after each of its steps."""

    puzzle: SlotPuzzle
    number: int
    relabelling: Relabelling | None
    film: list[tuple[np.ndarray, float, bool]] = field(default_factory=list)

    def on_board(self, preds: np.ndarray) -> np.ndarray:
        """Return an answer on the puzzle's own board, int32 `[s]`."""
        return preds.astype(np.int32) if self.relabelling is None else self.relabelling.undo(preds)


def finished_batches(
    step: Callable[..., tuple],
    empty_slots: Callable[[dict[str, mx.array]], Slots],
    batches: Iterator[Batch],
    wanted: Collection[str],
    after_step: Callable[[], None],
    search: Search,
) -> Iterator[SlotBatch]:
    """Take the outer steps of all examples, and of as many samples of each as it needs.

    Args:
        step: the compiled function of `make_slot_step`. Every call has a batch of the same shape.
        empty_slots: makes the slots before the first step from the rows that wait.
        batches: of equal shape.
        wanted: names of the outputs that are needed besides `preds`, `q_halt_logits`, `steps` and `movement`.
        after_step: called after each step; what it raises ends the evaluation.
        search: how far to think.

    Yields:
        The batches in their order, when all their puzzles are done.
    """
    first = next(batches, None)
    if first is None:
        return
    queue = _Queue(itertools.chain([first], batches), search)
    rows = {name: array.copy() for name, array in first.arrays.items()}  # empty seats keep theirs, whose results go
    rows[SAMPLE_KEY] = np.zeros((len(first.inputs), 2), np.uint32)
    seats: list[_Seat | None] = [None] * len(first.inputs)
    leave = np.zeros(len(seats), bool)
    slots: Slots | None = None
    while not queue.is_empty:
        free = [slot for slot, seat in enumerate(seats) if seat is None]
        for slot, (puzzle, sample) in zip(free, queue.take(len(free)), strict=False):
            arrays, relabelling = search.sample(puzzle.batch.batch, puzzle.row, sample)
            for name, array in arrays.items():
                rows[name][slot] = array
            seats[slot] = _Seat(puzzle, sample, relabelling)
            leave[slot] = True  # whatever is there
        if any(seats):
            device_rows = {name: mx.array(array) for name, array in rows.items()}
            slots = empty_slots(device_rows) if slots is None else slots
            slots, halted, metrics, outputs = step(slots, device_rows, mx.array(leave))
            outputs = {name: outputs[name] for name in (*OF_SAMPLES, *wanted) if name in outputs}
            mx.async_eval(slots, halted, metrics, outputs)
            leave[:] = False
            _end_samples(seats, np.array(halted), rows["inputs"], metrics, outputs, search, queue)
            after_step()
        yield from queue.finished()


def _end_samples(
    seats: list[_Seat | None],
    halted: np.ndarray,
    inputs: np.ndarray,
    metrics: dict[str, mx.array],
    outputs: dict[str, mx.array],
    search: Search,
    queue: _Queue,
) -> None:
    """Take the samples from their seats that have ended: the model has halted, their answer is verified, or another's.

    Args:
        seats: one for each slot.
        halted: bool `[b]`.
        inputs: of the rows in the slots, int32 `[b, s]`.
        metrics: what each row adds to the metrics, `[b]` by name.
        outputs: of the model.
        search: how far to think.
        queue: of the puzzles.
    """
    taken = [slot for slot, seat in enumerate(seats) if seat is not None]
    ended = halted[taken]
    if search.film or search.leaves_early:
        preds = to_numpy(outputs["preds"])[taken]
    if search.rules is not None and search.leaves_early:
        ended = ended | search.rules.is_best(inputs[taken], preds)
    if search.film:
        q_halt, halts = (to_numpy(outputs[name])[taken] for name in ("q_halt_logits", "halts"))
        for slot, answer, q, would_halt in zip(taken, preds, q_halt.tolist(), halts.tolist(), strict=True):
            if (seat := seats[slot]) is not None:
                seat.film.append((seat.on_board(answer), q, would_halt))
    if not ended.any():
        return
    found, results = ({name: to_numpy(array) for name, array in group.items()} for group in (metrics, outputs))
    done = np.array(taken)[ended]
    for slot, verdict in zip(done.tolist(), search.verdicts(inputs[done], results["preds"][done]), strict=True):
        if (seat := seats[slot]) is not None:
            of_row = {name: values[slot].copy() for name, values in results.items()}  # not all rows with it
            of_row["preds"] = seat.on_board(of_row["preds"])
            sample = Sample(
                number=seat.number,
                metrics={name: float(values[slot]) for name, values in found.items()},
                outputs=of_row,
                scored=search.scored(seat.puzzle.inputs, of_row["preds"]),
                verdict=verdict,
                film=seat.film,
            )
            seat.puzzle.end(sample)
            queue.ended(seat.puzzle)
            seats[slot] = None
    for slot, seat in enumerate(seats):
        if seat is not None and seat.puzzle.is_done:  # its other samples need not go on
            seats[slot] = None
