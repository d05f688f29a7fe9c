"""Training metrics: from the sums that a step leaves on the device to the means that are logged and stopped by."""

from __future__ import annotations

from collections import deque

import mlx.core as mx

from utils.errors import UserError
from utils.train_state import Metrics

# What stop_when may name, besides the evaluation's metrics
TRAIN_METRICS = tuple(
    f"train/{name}"
    for name in ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss", "q_halt_loss", "q_continue_loss")
)


def means(sums: list[dict[str, float]], global_batch_size: int) -> dict[str, float]:
    """`train/<name>` over some steps: losses per example of the batches, everything else per counted row.

    Args:
        sums: for each step the metric sums of the loss head.
        global_batch_size: rows of a step's batch.
    """
    total = {name: sum(step[name] for step in sums) for name in sums[0]}
    count = max(total["count"], 1.0)
    examples = global_batch_size * len(sums)
    return {f"train/{name}": value / (examples if name.endswith("loss") else count) for name, value in total.items()}


class TrainMetrics:
    """Collects the metrics of training steps and reads them from the device a few steps at a time.

    Args:
        global_batch_size: rows of a step's batch.
        window: over how many steps `over_window` looks back.
    """

    def __init__(self, global_batch_size: int, window: int):
        self._global_batch_size = global_batch_size
        self._pending: list[Metrics] = []
        self._window: deque[dict[str, float]] = deque(maxlen=window)

    def add(self, metrics: Metrics) -> None:
        """Take the metric sums of one step, without waiting for them."""
        self._pending.append(metrics)

    def read(self) -> dict[str, float]:
        """Wait for the steps added since the last read and return their means."""
        mx.eval(self._pending)
        sums = [{name: float(value) for name, value in step.items()} for step in self._pending]
        self._pending.clear()
        self._window.extend(sums)
        return means(sums, self._global_batch_size)

    @property
    def pending(self) -> int:
        """How many steps wait to be read."""
        return len(self._pending)

    def window_counts(self, metric: str) -> bool:
        """Whether `over_window` says something of `metric`: `window` steps were read, and rows were counted in them."""
        full = len(self._window) == self._window.maxlen
        return full and (metric.endswith("loss") or any(step["count"] > 0 for step in self._window))

    def over_window(self) -> dict[str, float]:
        """The means over the last `window` steps read, or as many as there were."""
        return means(list(self._window), self._global_batch_size)


def check_metric(metric: str | None, known: list[str]) -> None:
    """Check the metric that `stop_when` names, if any.

    Raises:
        UserError: if it is not among the known ones; the message lists them.
    """
    if metric is not None and metric not in known:
        raise UserError(f"stop_when.metric = {metric!r} can't be stopped by; choose one of {', '.join(known)}")
