"""Noise and random states of samples: of the promised size, for the rows that have a key alone, whatever is beside."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from models.act import Carry
from models.variation import SAMPLE_KEY, vary

ROWS, SHAPE = 4, (40, 50)
KEYS = [[0, 0], [3, 7], [0, 9], [2**32 - 1, 2**31]]  # the plain row, and samples


def carry_of(
    keys: list[list[int]] = KEYS, steps: list[int] | int = 0, names: str = "ab", dtype: mx.Dtype = mx.float32
) -> Carry:
    """Rows with a key each, whose states are 1, 2, …"""
    rows = len(keys)
    states = {name: mx.full((rows, *SHAPE), number, dtype) for number, name in enumerate(names, start=1)}
    return states | {
        "steps": mx.array([steps] * rows if isinstance(steps, int) else steps, mx.int32),
        "halted": mx.zeros(rows, mx.bool_),
        "current_data": {"inputs": mx.zeros((rows, 2), mx.int32), SAMPLE_KEY: mx.array(keys, mx.uint32)},
    }


def added(carry: Carry, noise: float = 0.0, random_init: bool = False) -> dict[str, np.ndarray]:
    """By how much the states change."""
    new = vary(carry, noise, random_init)
    assert new.keys() == carry.keys()
    assert all(new[name] is carry[name] for name in ("steps", "halted", "current_data"))
    return {name: np.array((new[name] - carry[name]).astype(mx.float32)) for name in "ab" if name in carry}


def assert_normal(numbers: np.ndarray, std: float) -> None:
    """Within five standard errors, which a right generator misses once in a million times; and not the same twice."""
    n = numbers.size
    assert abs(numbers.mean()) < 5 * std / math.sqrt(n)
    assert abs(numbers.std() / std - 1) < 5 / math.sqrt(2 * n)
    assert abs(np.mean(np.abs(numbers) < std) - 0.6827) < 5 * 0.47 / math.sqrt(n)  # of a normal distribution


def test_noise_has_the_standard_deviation_of_its_key() -> None:
    """A published setting such as 0.1 would mean something else here."""
    for noise in (0.1, 2.0):
        for drawn in added(carry_of(), noise).values():
            for row in drawn[1:]:
                assert_normal(row, noise)


def test_a_random_beginning_replaces_the_state() -> None:
    """It would be a noisy version of the usual beginning, in which nearly the same happens."""
    new = vary(carry_of(), 0.0, True)
    for name in "ab":
        for row in np.array(new[name])[1:]:
            assert_normal(row, 1.0)


def test_random_beginnings_are_for_a_row_s_first_step() -> None:
    """What the model has thought would be thrown away at every step."""
    drawn = added(carry_of([[3, 7]] * 4, [0, 1, 2, 16]), random_init=True)
    for state in drawn.values():
        assert [bool(row.any()) for row in state] == [True, False, False, False]


@pytest.mark.parametrize(("noise", "random_init"), [(0.5, False), (0.0, True), (0.5, True)])
def test_rows_without_a_key_are_left_alone(noise: float, random_init: bool) -> None:
    """The first try would not be the plain one, bit for bit. Half a key is a key."""
    for state in added(carry_of(), noise, random_init).values():
        assert [bool(row.any()) for row in state] == [False, True, True, True]
    assert vary(carry_of(), 0.0, False)["a"].tolist() == carry_of()["a"].tolist()


def test_a_row_s_numbers_are_those_of_its_key_in_any_place_of_any_batch() -> None:
    """Results would depend on the batch size, the order of puzzles and the number of ranks. Bit for bit: a difference
    of rounding grows from step to step."""
    steps = [0, 0, 3, 5]
    whole = {name: np.array(vary(carry_of(KEYS, steps), 0.1, True)[name]) for name in "ab"}
    for order in ([3, 1], [2], [1, 1, 3, 0, 2]):
        there = vary(carry_of([KEYS[row] for row in order], [steps[row] for row in order]), 0.1, True)
        for name in "ab":
            np.testing.assert_array_equal(np.array(there[name]), whole[name][order])


def test_every_key_step_and_state_has_numbers_of_its_own() -> None:
    """Samples would be copies of each other; noise that is the same at every step would add up in one direction; two
    states would move together."""
    keys = np.random.default_rng(0).integers(1 << 32, size=(5, 2)).tolist()
    beginnings = vary(carry_of(keys), 0.0, True)
    states = [beginnings, *(vary(carry_of(keys, step), 1.0, False) for step in range(4))]
    draws = [row.ravel() for state in states for name in "ab" for row in np.array(state[name])]
    correlations = np.corrcoef(np.stack(draws)) - np.eye(len(draws))
    assert len(draws) == 5 * 5 * 2
    assert np.abs(correlations).max() < 6 / math.sqrt(math.prod(SHAPE))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_states_keep_their_dtype(dtype: mx.Dtype) -> None:
    """Half precision would silently become float32 after the first step, and the compiled step a second one."""
    new = vary(carry_of(dtype=dtype), 0.1, True)
    assert (new["a"].dtype, new["b"].dtype) == (dtype, dtype)
    assert_normal(np.array((new["a"][1]).astype(mx.float32)), math.hypot(1.0, 0.1))
