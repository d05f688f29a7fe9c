"""When rows halt: by their Q values, at the limit, and under exploration never before the drawn minimum."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from models.act import draw_min_steps
from tests.helpers.configs import pretrain_config, random_batch, sizes
from utils.model import build_model

ROWS = 2000
MAX_STEPS = 5


def halting_steps(*, q_halt: float, q_continue: float, exploration: float, max_steps: int = MAX_STEPS) -> np.ndarray:
    """The step at which each of many equal rows first halts, given constant Q logits."""
    arch = pretrain_config({"halt_exploration_prob": exploration, "halt_max_steps": max_steps, "hidden_size": 4}).arch
    head = build_model(arch, sizes(seq_len=2), mx.random.key(0))
    head.model.inner.q_head.bias = mx.array([q_halt, q_continue])
    model = head.model
    batch = random_batch(0, batch=ROWS, seq_len=2)
    carry = model.initial_carry(batch)
    halted_at = np.zeros(ROWS, int)
    for step in range(1, max_steps + 1):
        carry = model.begin_step(carry, batch)
        min_steps = draw_min_steps(mx.random.key(step), ROWS, max_steps, exploration)
        carry, _ = model(carry, model.puzzle_rows(carry), training=True, min_steps=min_steps)
        halted = np.array(carry["halted"])
        halted_at[(halted_at == 0) & halted] = step
        # A row that halted before starts afresh, which must not count again: follow only those that go on.
        np.testing.assert_array_equal(np.array(carry["steps"])[halted_at == 0], step)
    return halted_at


def test_without_exploration_q_decides() -> None:
    assert (halting_steps(q_halt=1.0, q_continue=-1.0, exploration=0.0) == 1).all()
    assert (halting_steps(q_halt=-1.0, q_continue=1.0, exploration=0.0) == MAX_STEPS).all()
    # equal values do not halt: the comparison is strict
    assert (halting_steps(q_halt=-5.0, q_continue=-5.0, exploration=0.0) == MAX_STEPS).all()


@pytest.mark.parametrize("exploration", [0.1, 1.0])
def test_exploration_keeps_rows_that_would_halt(exploration: float) -> None:
    # Every row wants to halt at once. At each step, with probability p, it has to reach a minimum drawn uniformly from
    # {2..max} first; so the chance to halt at step s is 1 - p · P(minimum > s).
    observed = halting_steps(q_halt=1.0, q_continue=-1.0, exploration=exploration)
    expected, going_on = np.zeros(MAX_STEPS + 1), 1.0
    for step in range(1, MAX_STEPS + 1):
        p_halt = 1.0 - exploration * (MAX_STEPS - step) / (MAX_STEPS - 1)
        expected[step] = going_on * p_halt
        going_on *= 1.0 - p_halt
    frequencies = np.bincount(observed, minlength=MAX_STEPS + 1) / ROWS
    four_deviations = 4 * np.sqrt(expected * (1 - expected) / ROWS) + 1e-9
    assert (np.abs(frequencies - expected) <= four_deviations).all(), (frequencies, expected)


def test_exploration_never_prolongs_beyond_the_limit() -> None:
    assert halting_steps(q_halt=-1.0, q_continue=1.0, exploration=1.0).max() == MAX_STEPS


def test_a_limit_of_one_halts_every_row_at_once() -> None:
    assert (halting_steps(q_halt=-1.0, q_continue=1.0, exploration=1.0, max_steps=1) == 1).all()


def test_evaluation_takes_all_steps_whatever_q_says() -> None:
    head = build_model(pretrain_config().arch, sizes(), mx.random.key(0))
    head.model.inner.q_head.bias = mx.array([9.0, -9.0])
    batch = random_batch(0)
    carry = head.model.begin_step(head.model.initial_carry(batch), batch)
    for step in range(1, head.model.config.halt_max_steps + 1):
        carry, outputs = head.model(carry, head.model.puzzle_rows(carry), training=False)
        assert carry["halted"].all().item() == (step == head.model.config.halt_max_steps)
        assert "target_q_continue" not in outputs


def test_halted_rows_restart_on_new_data_and_others_keep_theirs() -> None:
    head = build_model(pretrain_config().arch, sizes(), mx.random.key(0))
    old, new = random_batch(0), random_batch(1)
    halted = mx.array([True, False] * 4)
    z = mx.random.normal((8, 17, 32))
    carry = {"z_H": z, "z_L": 2 * z, "steps": mx.full((8,), 3, mx.int32), "halted": halted, "current_data": old}
    begun = head.model.begin_step(carry, new)
    for row in range(8):
        fresh = row % 2 == 0
        assert begun["steps"][row].item() == (0 if fresh else 3)
        for name in old:
            assert mx.array_equal(begun["current_data"][name][row], (new if fresh else old)[name][row])
        expected = mx.broadcast_to(head.model.inner.H_init, (17, 32)) if fresh else z[row]
        assert mx.array_equal(begun["z_H"][row], expected)
        expected = mx.broadcast_to(head.model.inner.L_init, (17, 32)) if fresh else 2 * z[row]
        assert mx.array_equal(begun["z_L"][row], expected)


def test_the_model_tells_which_rows_its_rule_would_halt() -> None:
    """The viewer and eval_halt=q go by it."""
    head = build_model(pretrain_config().arch, sizes(), mx.random.key(0))
    batch = random_batch(0)
    carry = head.model.begin_step(head.model.initial_carry(batch), batch)
    for bias, halts in (([1.0, -1.0], True), ([-1.0, 1.0], False), ([2.0, 2.0], False)):
        head.model.inner.q_head.bias = mx.array(bias)
        after, outputs = head.model(carry, head.model.puzzle_rows(carry), training=False)
        assert outputs["halts"].tolist() == [halts] * 8
        assert not after["halted"].any()
        after, _ = head.model(carry, head.model.puzzle_rows(carry), training=False, halt_by_q=True)
        assert after["halted"].tolist() == [halts] * 8
