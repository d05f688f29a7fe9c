"""Measured times of training steps, slices and outer steps, without the first one, in which kernels are compiled."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from dataset.puzzle_dataset import Batch, PuzzleDataset
from utils.evaluation.evaluate import Evaluator
from utils.evaluation.micro_batch import Enough, drain

_FIRST = 1  # steps that are not timed: kernels are compiled, and the memory taken that is then kept
_LEAST, _MOST, _SECONDS = 2, 50, 3.0  # steps that are timed: the least number, and more until so much time has passed


def seconds_of(compute: Callable[[], Any], number: int | None = None) -> float:
    """Measure the median time of a computation, in seconds.

    Args:
        compute: returns the arrays to evaluate.
        number: how often it is timed, which ranks that exchange something have to agree upon; None: as it takes long.
    """
    times: list[float] = []
    while len(times) < _FIRST + number if number is not None else not _are_enough(times):
        begin = time.perf_counter()
        mx.eval(compute())
        times.append(time.perf_counter() - begin)
    return statistics.median(times[_FIRST:])


def seconds_of_outer_step(evaluator: Evaluator, dataset: PuzzleDataset, rows: int) -> float:
    """Measure the median time of an outer step of an evaluation, in seconds.

    Args:
        evaluator: the model.
        dataset: whose first examples are evaluated, again and again if they are few.
        rows: of a batch at most.
    """
    ends: list[float] = []
    times: list[float] = []

    def after_step() -> None:
        ends.append(time.perf_counter())
        times[:] = [end - begin for begin, end in itertools.pairwise(ends)]
        if _are_enough(times):
            raise Enough

    def batches() -> Iterator[Batch]:
        while True:
            yield from dataset.eval_batches(max_rows=rows)

    drain(evaluator, batches(), after_step)
    return statistics.median(times[_FIRST:])


def number_of(seconds: float) -> int:
    """Return how often to time what takes so many seconds."""
    return max(_LEAST, min(_MOST, int(_SECONDS / seconds)))


def _are_enough(times: list[float]) -> bool:
    timed = times[_FIRST:]
    return len(timed) >= _MOST or (len(timed) >= _LEAST and sum(timed) >= _SECONDS)
