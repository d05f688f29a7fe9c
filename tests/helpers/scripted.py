"""Samples whose ends and answers are written down beforehand: what a search does with seats, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from dataset.puzzle_dataset import Batch
from dataset.relabelling import Relabelling
from models.variation import SAMPLE_KEY
from utils.evaluation.search import Search
from utils.evaluation.slots import finished_batches
from utils.evaluation.thinking import Choose, Thinking
from utils.evaluation.validity import Rules

WRONG, DETOUR, BEST = 0, 1, 2  # the first token of an answer; the second one is its cost, the third tells it apart


@dataclass(frozen=True)
class Try:
    """What a sample answers after each of its steps, tokens `[steps, 3]`, and its Q-halt at the end."""

    answers: np.ndarray
    q: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.answers)

    def ended(self, leaves_early: bool) -> int:
        """The steps that it takes, fewer where a best answer is verified."""
        best = np.flatnonzero(self.answers[:, 0] == BEST)
        return int(best[0]) + 1 if leaves_early and len(best) else self.steps


Scripts = list[list[Try]]  # by puzzle and sample


class ScriptedSearch(Search):
    """A search over puzzles that are known by their identifiers, of which samples have keys `[puzzle, number]`."""

    def __init__(self, samples: int, choose: Choose):
        super().__init__(Thinking(samples=samples, noise=float(samples > 1), choose="auto"), None)
        self.rules = Rules(
            holds=lambda inputs, preds: preds[:, 0] != WRONG,
            is_best=lambda inputs, preds: preds[:, 0] == BEST,
            cost=lambda preds: preds[:, 1].astype(np.int64),
        )
        self._choose = choose
        self.leaves_early = choose in ("rules", "auto")

    def sample(self, batch: Batch, row: int, number: int) -> tuple[dict[str, np.ndarray], Relabelling | None]:
        arrays = {name: array[row] for name, array in batch.arrays.items()}
        return arrays | {SAMPLE_KEY: np.array([batch.puzzle_identifiers[row], number], np.uint32)}, None


@dataclass
class Played:
    """What a search has found, in the data set's order, and what it did meanwhile."""

    search: ScriptedSearch
    preds: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int32))
    sums: list[dict[str, float]] = field(default_factory=list)  # of each batch
    seated: list[set[tuple[int, int]]] = field(default_factory=list)  # puzzle and sample, at each step
    most_under_way: int = 0  # batches


def batches_of(puzzles: int, rows: int) -> list[Batch]:
    """So many puzzles in batches, the last of them padded."""
    found = []
    for start in range(0, puzzles, rows):
        real = min(rows, puzzles - start)
        ids = np.where(np.arange(rows) < real, start + np.arange(rows), 0).astype(np.int32)
        arrays = {"inputs": np.zeros((rows, 3), np.int32), "labels": np.zeros((rows, 3), np.int32)}
        found.append(Batch("all", arrays | {"puzzle_identifiers": ids}, real))
    return found


def play(scripts: Scripts, rows: int, choose: Choose) -> Played:
    """Search through all puzzles in so many slots."""
    played = Played(ScriptedSearch(len(scripts[0]), choose))
    read = done = 0

    def batches() -> Iterator[Batch]:
        nonlocal read
        for batch in batches_of(len(scripts), rows):
            read += 1
            played.most_under_way = max(played.most_under_way, read - done)
            yield batch

    def count() -> None:
        played.seated.append(step.seated)

    step = _Step(scripts, rows)
    for results in finished_batches(step, step.empty, batches(), (), count, played.search):
        batch, metrics, outputs = results.batch, results.metrics, results.outputs
        done += 1
        played.preds = np.concatenate([played.preds, outputs["preds"][: batch.num_examples]])
        played.sums.append(metrics)
    return played


class _Step:
    """Stands in for the compiled step: takes the rows where told, or where a sample has ended, like a model."""

    def __init__(self, scripts: Scripts, rows: int):
        self._scripts, self._rows = scripts, rows
        self.seated: set[tuple[int, int]] = set()

    def empty(self, rows: dict[str, mx.array]) -> dict[str, Any]:
        return {"keys": mx.zeros((self._rows, 2), mx.uint32), "steps": mx.zeros(self._rows, mx.int32), "halted": None}

    def __call__(self, slots: dict[str, Any], rows: dict[str, mx.array], leave: mx.array) -> tuple[Any, ...]:
        takes = np.array(leave) if slots["halted"] is None else np.array(leave) | np.array(slots["halted"])
        keys = np.where(takes[:, None], np.array(rows[SAMPLE_KEY]), np.array(slots["keys"]))
        steps = np.where(takes, 0, np.array(slots["steps"])) + 1
        self.seated = {(int(puzzle), int(number)) for puzzle, number in keys}
        tries = [self._scripts[puzzle][number] for puzzle, number in keys]
        # a row whose sample has ended and was not replaced goes on with the same
        preds = np.array([one.answers[min(step, one.steps) - 1] for one, step in zip(tries, steps, strict=True)])
        halted = mx.array(steps >= [one.steps for one in tries])
        new = {"keys": mx.array(keys.astype(np.uint32)), "steps": mx.array(steps.astype(np.int32)), "halted": halted}
        metrics = {"count": mx.ones(self._rows), "exact_accuracy": mx.array((preds[:, 2] == 0).astype(np.float32))}
        outputs = {
            "preds": mx.array(preds.astype(np.uint32)),
            "q_halt_logits": mx.array(np.array([one.q for one in tries], np.float32)),
            "steps": new["steps"],
            "movement": mx.array(np.array([abs(one.q) for one in tries], np.float32)),
        }
        return new, halted, metrics, outputs


def tries_of(make: Callable[[int, int], Try], puzzles: int, samples: int) -> Scripts:
    """Write a script for each sample of each puzzle."""
    return [[make(puzzle, number) for number in range(samples)] for puzzle in range(puzzles)]
