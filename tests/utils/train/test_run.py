"""How far a run will go, as its first line says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.configs import pretrain_config
from utils.checkpoints.record import Progress
from utils.train.run import planned_end, reason_to_end

# 12 epochs of 10 puzzles in batches of 4: 30 steps of the schedule; an iteration of 3 epochs has 7 batches, not 7.5
LENGTH: dict[str, Any] = {"epochs": 12, "eval_interval": 3}


def batches(epochs: int) -> int:
    return epochs * 10 // 4


@pytest.mark.parametrize(
    ("changes", "step", "progress", "expected"),
    [
        ({}, 0, {}, 28),
        ({"eval_interval": 12}, 0, {"iteration_epochs": 12}, 30),
        ({"max_steps": 9}, 0, {}, 9),
        ({"max_steps": 29}, 0, {}, 28),
        ({}, 9, {"iteration": 1, "epochs_done": 3, "batches": 2}, 28),
        ({"eval_interval": 1}, 9, {"iteration": 1, "epochs_done": 3, "batches": 2}, 14 + 6 * 2),
        ({"max_steps": 5}, 9, {"iteration": 1, "epochs_done": 3, "batches": 2}, 9),
        ({}, 28, {"iteration": 4, "epochs_done": 12}, 28),
        ({"epochs": 15}, 28, {"iteration": 4, "epochs_done": 12}, 35),
    ],
    ids=str,
)
def test_the_end_is_where_schedule_data_or_max_steps_end(
    changes: dict[str, Any], step: int, progress: dict[str, Any], expected: int
) -> None:
    """Who waits for a run would wait for steps that never come."""
    config = pretrain_config(**(LENGTH | changes))
    state: Any = SimpleNamespace(step=step, total_steps=config.epochs * 10 // 4)
    train_set: Any = SimpleNamespace(num_batches=batches)
    found = Progress(**({"iteration_epochs": 3} | progress))
    before = found.model_copy(deep=True)
    assert planned_end(config, state, found, train_set) == (expected, True)
    assert found == before


def test_where_the_data_decides_batch_by_batch_the_end_is_not_exact() -> None:
    state: Any = SimpleNamespace(step=0, total_steps=30)
    train_set: Any = SimpleNamespace(num_batches=lambda epochs: None)
    config = pretrain_config(**LENGTH)
    assert planned_end(config, state, Progress(iteration_epochs=3), train_set) == (30, False)


def test_a_run_ends_after_the_evaluation_of_its_last_step() -> None:
    """Without it the last checkpoint would have no metrics."""
    config = pretrain_config(**LENGTH, max_steps=9)
    at_end = {"iteration": 1, "iteration_epochs": 3, "epochs_done": 3, "batches": 2}
    for step, evaluated, total, expected in (
        (8, 8, 30, None),
        (9, 7, 30, None),
        (9, 9, 30, "max_steps = 9 is reached"),
        (9, 9, 9, "all 12 epochs are done"),
    ):
        state: Any = SimpleNamespace(step=step, total_steps=total)
        assert reason_to_end(config, state, Progress(**at_end, evaluated=evaluated)) == expected
