"""Training metrics: what is logged for one step or several, and what early stopping looks at."""

from __future__ import annotations

import json
import math
from typing import Any

import mlx.core as mx
import pytest

from common.errors import UserError
from utils.train.metrics import SKIPPED_IN_A_ROW, NonFiniteError, TrainMetrics, check_metric

FINITE, NOT_FINITE = mx.array(True), mx.array(False)


def step(count: float, accuracy: float, loss: float) -> dict[str, mx.array]:
    """Sums over the rows of a batch, as a training step leaves them."""
    return {"count": mx.array(count), "accuracy": mx.array(accuracy), "lm_loss": mx.array(loss)}


def read(*steps: tuple[float, float, float], window: int = 100) -> dict[str, float]:
    metrics = TrainMetrics(global_batch_size=8, window=window)
    for number, sums in enumerate(steps, start=1):
        metrics.add(number, step(*sums), FINITE)
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
        metrics.add(number, step(count, accuracy, 8.0), FINITE)
        assert metrics.read()["train/accuracy"] == accuracy / count
    assert not metrics.window_counts("train/accuracy")
    assert metrics.over_window()["train/accuracy"] == 0.5
    metrics.add(3, step(8.0, 8.0, 8.0), FINITE)
    metrics.add(4, step(8.0, 8.0, 8.0), FINITE)
    assert metrics.read()["train/accuracy"] == 1.0
    assert metrics.window_counts("train/accuracy")
    assert metrics.over_window()["train/accuracy"] == 1.0  # the first step has left it


def test_reading_is_the_only_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With log_interval=100 the device must not stand still after every step."""
    evaluate = mx.eval
    waits: list[int] = []
    monkeypatch.setattr(mx, "eval", lambda *arrays: (waits.append(1), evaluate(*arrays)))
    metrics = TrainMetrics(global_batch_size=8, window=100)
    for number in range(6):
        metrics.add(number, step(8.0, 4.0, 8.0), FINITE)
    assert not waits
    metrics.read()
    assert len(waits) == 1


def test_a_window_without_halted_rows_says_nothing_of_them() -> None:
    """stop_when.metric=train/steps stop_when.at_most=1 would stop a run before any row has halted, at 0 of 0."""
    metrics = TrainMetrics(global_batch_size=8, window=2)
    for number in range(2):
        metrics.add(number, step(0.0, 0.0, 8.0), FINITE)
    metrics.read()
    assert not metrics.window_counts("train/accuracy")
    assert metrics.window_counts("train/lm_loss")


def test_an_unknown_metric_is_told_with_those_there_are() -> None:
    check_metric(None, lambda: ["train/a"])
    check_metric("train/a", lambda: ["train/a"])
    with pytest.raises(UserError, match=r"'train/c': unknown metric; choose one of train/a, train/b"):
        check_metric("train/c", lambda: ["train/a", "train/b"])


# ------------------------------------------------------------------------------------------ steps that are not finite


def bad_step(**sums: float) -> dict[str, mx.array]:
    """A step with NaN or infinity in its loss, or only in its gradient if `sums` does not say otherwise."""
    changes = {name: mx.array(value) for name, value in sums.items()}
    return step(8.0, 4.0, 8.0) | changes


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ({}, "at step 7 the gradient is not finite"),
        ({"lm_loss": math.nan, "loss": math.nan}, "at step 7 lm_loss is nan"),
        ({"lm_loss": math.inf, "loss": math.inf}, "at step 7 lm_loss is inf"),
        ({"q_continue_loss": math.nan, "loss": math.nan}, "at step 7 q_continue_loss is nan"),
        ({"lm_loss": 3e38, "loss": math.inf}, "at step 7 loss is inf"),  # each finite, but not their sum
    ],
    ids=str,
)
def test_a_step_that_is_not_finite_stops_the_run_and_is_named(sums: dict[str, float], message: str) -> None:
    """Which of them broke, and when, is what the user needs for choosing another learning rate or precision."""
    metrics = TrainMetrics(global_batch_size=8, window=3)
    metrics.add(6, step(8.0, 4.0, 8.0), FINITE)
    metrics.add(7, bad_step(**sums), NOT_FINITE)
    metrics.add(8, step(8.0, 4.0, 8.0), FINITE)
    with pytest.raises(NonFiniteError) as error:
        metrics.read()
    assert str(error.value) == message


def test_looking_alone_finds_it_too() -> None:
    """Before a checkpoint is written, so that none ever holds what came after such a step."""
    metrics = TrainMetrics(global_batch_size=8, window=3)
    metrics.add(1, bad_step(), NOT_FINITE)
    with pytest.raises(NonFiniteError, match="at step 1"):
        metrics.settle()


def test_skipped_steps_are_counted_and_left_out_of_every_mean() -> None:
    """One NaN would make the mean of log_interval steps NaN, and stop_when blind for a whole window."""
    metrics = TrainMetrics(global_batch_size=8, window=3, skip=True)
    metrics.add(1, step(8.0, 4.0, 8.0), FINITE)
    metrics.add(2, bad_step(lm_loss=math.nan, accuracy=math.nan), NOT_FINITE)
    metrics.add(3, step(8.0, 8.0, 24.0), FINITE)
    assert metrics.unread == 3
    assert metrics.read() == {"train/count": 1.0, "train/accuracy": 0.75, "train/lm_loss": 2.0}
    assert metrics.skipped == 1
    assert not metrics.window_counts("train/lm_loss")  # two of three

    metrics.add(4, bad_step(), NOT_FINITE)
    assert metrics.read() == {}  # nothing but a skipped step
    assert (metrics.skipped, metrics.unread) == (2, 0)
    assert metrics.over_window()["train/lm_loss"] == 2.0

    metrics.add(5, step(8.0, 8.0, 8.0), FINITE)
    metrics.read()
    assert metrics.window_counts("train/lm_loss")


def test_a_model_that_does_not_recover_stops_also_with_skip() -> None:
    """Days would go by in which nothing is learnt."""
    metrics = TrainMetrics(global_batch_size=8, window=3, skip=True)
    number = 0
    for _ in range(2):  # a good step begins the count anew
        for _ in range(SKIPPED_IN_A_ROW - 1):
            number += 1
            metrics.add(number, bad_step(), NOT_FINITE)
        number += 1
        metrics.add(number, step(8.0, 4.0, 8.0), FINITE)
        metrics.read()
    for _ in range(SKIPPED_IN_A_ROW):
        number += 1
        metrics.add(number, bad_step(lm_loss=math.nan), NOT_FINITE)
        if number % 7 == 0:
            metrics.settle()
    with pytest.raises(NonFiniteError, match=f"at step {number} lm_loss is nan, as in all of the last 100 steps"):
        metrics.settle()
    assert metrics.skipped == 3 * SKIPPED_IN_A_ROW - 2


# ------------------------------------------------------------------------------------------ across a checkpoint


def everything(metrics: TrainMetrics) -> dict[str, Any]:
    return {"read": metrics.read(), "window": metrics.over_window(), "skipped": metrics.skipped}


def test_a_restored_collection_gives_the_same_means() -> None:
    """A curve would have a dent at every resume, and stop_when see another window than without it."""
    metrics = TrainMetrics(global_batch_size=8, window=3, skip=True)
    metrics.add(1, step(8.0, 1.0, 0.1), FINITE)
    metrics.add(2, bad_step(), NOT_FINITE)
    metrics.read()
    for number in (3, 4):  # taken, but not read yet: the checkpoint lies within a log_interval
        metrics.add(number, step(7.0, 2.0, 0.3), FINITE)
    metrics.settle()
    record = json.loads(json.dumps(metrics.record()))

    restored = TrainMetrics(global_batch_size=8, window=3, skip=True)
    restored.restore(record)
    assert restored.unread == metrics.unread == 2
    for collection in (metrics, restored):
        collection.add(5, step(8.0, 3.0, 0.7), FINITE)
    assert everything(restored) == everything(metrics)
    assert restored.window_counts("train/lm_loss")


def test_skipped_in_a_row_are_counted_across_a_checkpoint() -> None:
    """Checkpoints more often than every 100 steps would keep a broken run going for ever."""
    metrics = TrainMetrics(global_batch_size=8, window=3, skip=True)
    for number in range(SKIPPED_IN_A_ROW - 1):
        metrics.add(number, bad_step(), NOT_FINITE)
    metrics.settle()
    restored = TrainMetrics(global_batch_size=8, window=3, skip=True)
    restored.restore(json.loads(json.dumps(metrics.record())))
    restored.add(99, bad_step(), NOT_FINITE)
    with pytest.raises(NonFiniteError, match="at step 99"):
        restored.settle()


def test_another_window_keeps_the_newest_steps() -> None:
    """stop_when.window is among what may change at a resume."""
    metrics = TrainMetrics(global_batch_size=8, window=4)
    for number in range(4):
        metrics.add(number, step(8.0, 8.0 * (number > 1), 8.0), FINITE)
    metrics.read()
    for window, accuracy, full in ((2, 1.0, True), (4, 0.5, True), (6, 0.5, False)):
        restored = TrainMetrics(global_batch_size=8, window=window)
        restored.restore(metrics.record())
        assert restored.over_window()["train/accuracy"] == accuracy
        assert restored.window_counts("train/accuracy") is full
