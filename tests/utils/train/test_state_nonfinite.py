"""A step whose loss or gradient is not finite changes nothing, and the run goes on from where it stood."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from tests.helpers.configs import bits_of, pretrain_config, random_batch, train_state
from utils.train.state import TrainState
from utils.train.step import all_finite

# What a step replaces whether it counts or not: the next one must not draw the same numbers, nor keep an old rate.
MOVES_ON = {"random.key", "optimizer.learning_rate"}


def put(array: mx.array, value: float) -> mx.array:
    """A copy with `value` in its first place."""
    flat = array.flatten()
    flat[0] = value
    return flat.reshape(array.shape)


def break_weights(state: TrainState) -> None:
    weight = state.head.model.inner.lm_head.weight
    state.head.model.inner.lm_head.weight = put(weight, math.inf)


def break_puzzle_embedding(state: TrainState) -> None:
    table = state.head.model.inner.puzzle_emb.weights
    state.head.model.inner.puzzle_emb.weights = mx.full(table.shape, math.nan)


def break_carry(state: TrainState) -> None:
    assert state.carry is not None
    state.carry = state.carry | {
        "z_H": put(state.carry["z_H"], math.nan),
        "halted": mx.zeros_like(state.carry["halted"]),  # or the row would be reset
    }


def break_gradient(state: TrainState, magnitude: float = 1e30) -> None:
    """Tell the rows to halt, as surely as may be, and so wrongly that the loss is about `magnitude`, but finite."""
    assert state.carry is not None
    sign: Any = mx.sign(state.carry["z_H"][0, 0, 0]).item()
    weight = state.head.model.inner.q_head.weight
    state.head.model.inner.q_head.weight = put(weight, sign * magnitude)


BREAKS = {
    "weights": break_weights,
    "puzzle-embedding": break_puzzle_embedding,
    "carry": break_carry,
    "gradient": break_gradient,
}


def exploring(**changes: object) -> TrainState:
    return train_state(pretrain_config({"halt_exploration_prob": 0.5}, lr_warmup_steps=3, **changes))


@pytest.mark.parametrize("break_", BREAKS.values(), ids=BREAKS.keys())
def test_a_step_that_is_not_finite_changes_nothing(break_: Callable[[TrainState], None]) -> None:
    """One NaN among the moments makes all later weights NaN, and every checkpoint worthless from there on."""
    state = exploring()
    for step in range(5):
        assert state.train_step(random_batch(step)).finite.item()
    break_(state)
    before, key = bits_of(state), mx.array(state.random["key"])
    result = state.train_step(random_batch(5))
    metrics = result.metrics
    assert not result.finite.item()
    if break_ is break_gradient:
        assert all(mx.isfinite(value).item() for value in metrics.values())
    else:
        assert not mx.isfinite(metrics["loss"]).item()
    after = bits_of(state)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} <= MOVES_ON
    assert mx.array_equal(state.random["key"], mx.random.split(key)[0])
    assert state.step == 6  # a step of the schedule and of the data all the same
    assert state.optimizer.state["step"].item() == 5


def test_the_next_step_is_what_it_would_have_been() -> None:
    """With on_nonfinite=skip a run would be another from there on, without a word. The random key has moved on by one
    step in both."""
    skipping, untroubled = exploring(), exploring()
    for state in (skipping, untroubled):
        for step in range(5):
            state.train_step(random_batch(step))

    weight = skipping.head.model.inner.lm_head.weight
    break_weights(skipping)
    assert not skipping.train_step(random_batch(5)).finite.item()
    skipping.head.model.inner.lm_head.weight = weight
    untroubled.random["key"], _ = mx.random.split(untroubled.random["key"])
    untroubled.step += 1

    for step in range(6, 10):
        ours, theirs = (state.train_step(random_batch(step)).metrics for state in (skipping, untroubled))
        assert {name: value.item() for name, value in ours.items()} == {name: v.item() for name, v in theirs.items()}
    assert bits_of(skipping) == bits_of(untroubled)


def test_a_rate_that_is_far_too_high_leaves_numbers_behind() -> None:
    """The first step is finite and throws the weights beyond all measure; they are still no NaN afterwards."""
    state = train_state(pretrain_config(lr=1e36, lr_warmup_steps=0, weight_decay=0.0))
    finite = [state.train_step(random_batch(step)).finite.item() for step in range(4)]
    assert finite == [True, False, False, False]
    weights = dict(tree_flatten(state.head.parameters())).values()
    assert all(mx.isfinite(array).all().item() for array in weights)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_element_of_every_array_is_looked_at(value: float) -> None:
    good = {"a": mx.ones((3, 4)), "b": [mx.zeros(2), None, mx.array(-5.0)], "key": mx.random.key(0)}
    assert all_finite(good).item()
    for place in ((0, 0), (2, 3), (1, 2)):
        bad = mx.ones((3, 4))
        bad[place] = value
        assert not all_finite(good | {"a": bad}).item()
        assert not all_finite([bad.astype(mx.bfloat16)]).item()
        both = mx.concatenate([bad.flatten(), mx.array([-value])])
        assert not all_finite([both]).item()


def test_a_large_array_of_half_precision_is_as_finite_as_its_elements() -> None:
    """The states of a batch of the full model have millions of elements; float16 ends at 65504."""
    assert all_finite([mx.ones(200_000, mx.float16), mx.full(200_000, -6e4, mx.float16)]).item()


@pytest.mark.parametrize(("magnitude", "counts"), [(1.0, True), (1e10, True), (1e25, False), (1e30, False)], ids=str)
def test_a_gradient_that_counts_leaves_finite_moments(magnitude: float, counts: bool) -> None:
    """The second moment holds squares. Once infinite, it keeps its parameter where it is for ever, without a word."""
    state = exploring()
    for step in range(5):
        state.train_step(random_batch(step))
    break_gradient(state, magnitude)
    assert state.train_step(random_batch(5)).finite.item() is counts
    moments: list[Any] = [array for _, array in tree_flatten(state.optimizer.state)]
    assert all(mx.isfinite(array).all().item() for array in moments)
