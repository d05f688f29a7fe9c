"""Training metrics: from the sums that a step leaves on the device to the means that are logged and stopped by."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from common.errors import UserError
from utils.train.state import Metrics

# Skipping is for stray steps. A model that gives NaN for every batch will not recover by waiting.
SKIPPED_IN_A_ROW = 100


def means(sums: list[dict[str, float]], global_batch_size: int) -> dict[str, float]:
    """Compute `train/<name>` over some steps: losses per example of the batches, everything else per counted row.

    Args:
        sums: for each step the metric sums of the loss head.
        global_batch_size: rows of a step's batch.
    """
    total = {name: sum(step[name] for step in sums) for name in sums[0]}
    count = max(total["count"], 1.0)
    examples = global_batch_size * len(sums)
    return {f"train/{name}": value / (examples if name.endswith("loss") else count) for name, value in total.items()}


class NonFiniteError(Exception):
    """Loss or gradient of a training step held NaN or infinity. The message says what was found at which step."""


class TrainMetrics:
    """Collects the metrics of training steps and reads them from the device a few steps at a time.

    Steps that were not finite, which changed nothing, are counted in `skipped` and left out of every mean.

    Args:
        global_batch_size: rows of a step's batch.
        window: over how many steps `over_window` looks back.
        skip: go on after a step that was not finite, rather than raise.
    """

    def __init__(self, global_batch_size: int, window: int, *, skip: bool = False):
        self._global_batch_size = global_batch_size
        self._skip = skip
        self._pending: list[tuple[int, Metrics, mx.array]] = []  # on the device
        self._settled: list[dict[str, float]] = []  # here, but not part of a mean yet
        self._window: deque[dict[str, float]] = deque(maxlen=window)
        self._skipped_in_a_row = 0
        self.skipped = 0

    def add(self, step: int, metrics: Metrics, finite: mx.array) -> None:
        """Take the metric sums of one step, and whether it was finite, without waiting for them."""
        self._pending.append((step, metrics, finite))

    def settle(self) -> None:
        """Wait for the steps added so far and see whether they were finite.

        Raises:
            NonFiniteError: at the first that was not; with `skip`, only after SKIPPED_IN_A_ROW of them in a row.
        """
        mx.eval(self._pending)
        for step, metrics, finite in self._pending:
            sums = {name: float(value) for name, value in metrics.items()}
            if finite.item():
                self._settled.append(sums)
                self._skipped_in_a_row = 0
                continue
            self.skipped += 1
            self._skipped_in_a_row += 1
            losses = sorted((name for name in sums if name.endswith("loss")), key=lambda name: name == "loss")
            culprit = next((name for name in losses if not math.isfinite(sums[name])), None)
            found = f"{culprit} is {sums[culprit]}" if culprit else "the gradient is not finite"
            if not self._skip:
                raise NonFiniteError(f"at step {step} {found}")
            if self._skipped_in_a_row == SKIPPED_IN_A_ROW:
                raise NonFiniteError(f"at step {step} {found}, as in all of the last {SKIPPED_IN_A_ROW} steps")
        self._pending.clear()

    def read(self) -> dict[str, float]:
        """Settle, and return the means over the steps since the last read; nothing if all of them were skipped.

        Raises:
            NonFiniteError: as `settle`.
        """
        self.settle()
        sums, self._settled = self._settled, []
        self._window.extend(sums)
        return means(sums, self._global_batch_size) if sums else {}

    @property
    def unread(self) -> int:
        """How many steps wait to be read."""
        return len(self._pending) + len(self._settled)

    def window_counts(self, metric: str) -> bool:
        """Whether `over_window` says something of `metric`: `window` steps were read, and rows were counted in them."""
        full = len(self._window) == self._window.maxlen
        return full and (metric.endswith("loss") or any(step["count"] > 0 for step in self._window))

    def over_window(self) -> dict[str, float]:
        """The means over the last `window` steps read, or as many as there were; nothing if there were none."""
        return means(list(self._window), self._global_batch_size) if self._window else {}

    def record(self) -> dict[str, Any]:
        """What a checkpoint needs to know, in JSON's types. Settle first."""
        return {
            "unread": list(self._settled),
            "window": list(self._window),
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Become what `record` was taken of."""
        self._settled = list(record["unread"])
        self._window.extend(record["window"])
        self.skipped, self._skipped_in_a_row = record["skipped"], record["skipped_in_a_row"]


def check_metric(metric: str | None, known: Callable[[], list[str]]) -> None:
    """Check the metric that `stop_when` names, if any.

    Raises:
        UserError: if it is not among the known ones; the message lists them.
    """
    if metric is not None and metric not in (names := known()):
        raise UserError(f"stop_when.metric = {metric!r}: unknown metric; choose one of {', '.join(names)}")
