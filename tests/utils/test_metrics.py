"""Training metrics: what is logged for one step or several, and what early stopping looks at."""

from __future__ import annotations

import mlx.core as mx
import pytest

from utils.errors import UserError
from utils.metrics import TrainMetrics, check_metric


def step(count: float, accuracy: float, loss: float, *, finite: bool = True) -> dict[str, mx.array]:
    """Sums over the rows of a batch, as a training step leaves them."""
    sums = {"count": mx.array(count), "accuracy": mx.array(accuracy), "lm_loss": mx.array(loss)}
    return sums | {"finite": mx.array(finite)}


def read(*steps: tuple[float, float, float], window: int = 100) -> dict[str, float]:
    metrics = TrainMetrics(global_batch_size=8, window=window)
    for number, sums in enumerate(steps, start=1):
        metrics.add(number, step(*sums))
    return metrics.read()


def test_losses_are_per_example_and_the_rest_per_counted_row() -> None:
    """As in the PyTorch code, so that curves of both can be laid over one another."""
    assert read((4.0, 3.0, 16.0)) == {"train/count": 1.0, "train/accuracy": 0.75, "train/lm_loss": 2.0}


def test_a_step_in_which_no_row_halted_counts_nothing() -> None:
    assert read((0.0, 0.0, 16.0)) == {"train/count": 0.0, "train/accuracy": 0.0, "train/lm_loss": 2.0}


def test_several_steps_are_weighted_by_their_counts() -> None:
    """The mean of means would let a step with one halted row weigh as much as one with eight."""
    found = read((0.0, 0.0, 16.0), (1.0, 1.0, 8.0), (8.0, 0.5, 24.0))
    assert found["train/accuracy"] == pytest.approx(1.5 / 9)
    assert found["train/lm_loss"] == pytest.approx(48 / (3 * 8))


def test_each_step_is_read_once_and_the_window_looks_further_back() -> None:
    metrics = TrainMetrics(global_batch_size=8, window=3)
    for number, (count, accuracy) in enumerate(((8.0, 0.0), (8.0, 8.0)), start=1):
        metrics.add(number, step(count, accuracy, 8.0))
        assert metrics.read()["train/accuracy"] == accuracy / count
    assert not metrics.window_counts("train/accuracy")
    assert metrics.over_window()["train/accuracy"] == 0.5
    metrics.add(3, step(8.0, 8.0, 8.0))
    metrics.add(4, step(8.0, 8.0, 8.0))
    assert metrics.read()["train/accuracy"] == 1.0
    assert metrics.window_counts("train/accuracy")
    assert metrics.over_window()["train/accuracy"] == 1.0  # the first step has left it


def test_reading_is_the_only_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With log_interval=100 the device must not stand still after every step."""
    waits, evaluate = [], mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: (waits.append(1), evaluate(*arrays)))
    metrics = TrainMetrics(global_batch_size=8, window=100)
    for number in range(6):
        metrics.add(number, step(8.0, 4.0, 8.0))
    assert not waits
    metrics.read()
    assert len(waits) == 1


def test_a_window_without_halted_rows_says_nothing_of_them() -> None:
    """stop_when.metric=train/steps stop_when.at_most=1 would stop a run before any row has halted, at 0 of 0."""
    metrics = TrainMetrics(global_batch_size=8, window=2)
    for number in range(2):
        metrics.add(number, step(0.0, 0.0, 8.0))
    metrics.read()
    assert not metrics.window_counts("train/accuracy")
    assert metrics.window_counts("train/lm_loss")


def test_an_unknown_metric_is_told_with_those_there_are() -> None:
    check_metric(None, ["train/a"])
    check_metric("train/a", ["train/a"])
    with pytest.raises(UserError, match=r"'train/c' can't be stopped by; choose one of train/a, train/b"):
        check_metric("train/c", ["train/a", "train/b"])
