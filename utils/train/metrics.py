"""Training metrics: from the sums of a step, on the device, to the means that are logged and that `stop_when` reads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from common.errors import UserError
from models.losses import is_loss
from utils.train.step import Metrics

# Skipping is for single steps. A model that gives NaN for every batch will not recover.
SKIPPED_IN_A_ROW = 100


def means(sums: list[dict[str, float]], global_batch_size: int) -> dict[str, float]:
    """Compute `train/<name>` over some steps: losses per example of the batches, everything else per counted row.

    Args:
        sums: for each step the metric sums of the loss head, `count` among them.
        global_batch_size: rows of a step's batch.

    Returns:
        The means by name.
    """
    total = {name: sum(step[name] for step in sums) for name in sums[0]}
    count = max(total["count"], 1.0)
    examples = global_batch_size * len(sums)
    return {f"train/{name}": value / (examples if is_loss(name) else count) for name, value in total.items()}


class NonFiniteError(Exception):
    """NaN or infinity in the loss or gradient of a training step. The message names the value and the step."""


class TrainMetrics:
    """The metrics of training steps, read from the device a few steps at a time.

    Args:
        global_batch_size: rows of a step's batch.
        window: the number of last steps for `over_window`.
        skip: go on after a step that was not finite, rather than raise.

    Attributes:
        skipped: steps that were not finite. They changed nothing, and are left out of every mean.
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
        """Add one step, without waiting for its arrays.

        Args:
            step: its number.
            metrics: the metric sums of the loss head, float32 scalars.
            finite: bool scalar, whether loss and gradients were finite.
        """
        self._pending.append((step, metrics, finite))

    def settle(self) -> None:
        """Wait for the steps added so far, and check that they were finite.

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
            losses = sorted((name for name in sums if is_loss(name)), key=lambda name: name == "loss")
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
        """Number of steps added since the last `read`."""
        return len(self._pending) + len(self._settled)

    def window_counts(self, metric: str) -> bool:
        """Return whether `over_window` has a value of `metric`: `window` steps were read, with counted rows in them."""
        full = len(self._window) == self._window.maxlen
        return full and (is_loss(metric) or any(step["count"] > 0 for step in self._window))

    def over_window(self) -> dict[str, float]:
        """Return the means over the last `window` steps read, or as many as there were; nothing if there were none."""
        return means(list(self._window), self._global_batch_size) if self._window else {}

    def record(self) -> dict[str, Any]:
        """Return the state for a checkpoint, in JSON's types. Call `settle` first."""
        return {
            "unread": list(self._settled),
            "window": list(self._window),
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Restore the state that `record` returned."""
        self._settled = list(record["unread"])
        self._window.extend(record["window"])
        self.skipped, self._skipped_in_a_row = record["skipped"], record["skipped_in_a_row"]


def check_metric(metric: str | None, known: Callable[[], list[str]]) -> None:
    """Check the metric that `stop_when` names, if any.

    Args:
        metric: its name, or None.
        known: lists the names of all metrics.

    Raises:
        UserError: if there is no such metric; the message lists them.
    """
    if metric is not None and metric not in (names := known()):
        raise UserError(f"stop_when.metric = {metric!r}: unknown metric; choose one of {', '.join(names)}")
