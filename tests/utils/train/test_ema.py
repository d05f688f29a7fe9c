"""The moving average of the weights: what it is, when it moves, and who gets it. Resuming it: test_state_restore.py."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from common.errors import UserError
from tests.helpers.configs import FAMILY, bits_of, pretrain_config, random_batch, train_state
from utils.evaluation.evaluate import Evaluator
from utils.train.state import TrainState

RATE = 0.9


def averaging(**changes: Any) -> TrainState:
    return train_state(pretrain_config(**({"ema": True, "ema_rate": RATE, "lr_warmup_steps": 1} | changes)))


def trained(state: TrainState) -> dict[str, np.ndarray]:
    """The trainable weights, in float64."""
    return {name: np.array(a).astype(np.float64) for name, a in tree_flatten(state.head.trainable_parameters())}


@pytest.mark.parametrize("arch", FAMILY.values(), ids=FAMILY)
def test_the_average_is_that_of_the_definition(arch: dict[str, Any]) -> None:
    """It begins as the weights, without warm-up; puzzle embedding and initial states are no part of it."""
    state = averaging(arch=arch)
    expected = trained(state)
    fixed = state.weights().keys() - expected.keys()
    for step in range(5):
        state.train_step(random_batch(step))
        expected = {name: RATE * expected[name] + (1 - RATE) * now for name, now in trained(state).items()}
        for name, array in expected.items():
            np.testing.assert_allclose(np.array(state.weights()[name]), array, atol=1e-6, err_msg=name)
    raw = dict(tree_flatten(state.head.parameters()))
    assert fixed
    assert all(mx.array_equal(state.weights()[name], raw[name]) for name in fixed)
    assert all(not mx.array_equal(state.weights()[name], raw[name]) for name in expected)


def test_the_average_begins_with_the_weights_that_training_starts_from() -> None:
    """Those of `load_weights`, which come after the random ones."""
    state = averaging(lr=0.0, puzzle_emb_lr=0.0)
    state.head.model.inner.lm_head.weight = mx.ones_like(state.head.model.inner.lm_head.weight)
    state.train_step(random_batch(0))
    assert (np.array(state.weights()["model.inner.lm_head.weight"]) == 1).all()


def test_a_step_that_is_not_finite_does_not_move_the_average() -> None:
    """It would move towards weights that the step has left as they were."""
    state = averaging()
    for step in range(3):
        state.train_step(random_batch(step))
    before, weight = bits_of(state), state.head.model.inner.q_head.weight
    state.head.model.inner.q_head.weight = mx.full(weight.shape, mx.inf)
    assert not state.train_step(random_batch(3)).finite.item()
    state.head.model.inner.q_head.weight = weight
    after = bits_of(state)
    assert {name for name in before if after[name] != before[name]} <= {"random.key", "optimizer.learning_rate"}


def test_evaluation_sees_the_average_and_training_the_raw_weights() -> None:
    state, batch = averaging(), random_batch(9)
    evaluator = Evaluator(state.head)

    def logits(of: TrainState, evaluator: Evaluator) -> np.ndarray:
        with of.averaged():
            *_, (_, _, outputs) = evaluator.outer_steps(batch)
            return np.array(outputs["logits"])

    for step in range(4):
        state.train_step(random_batch(step))
    raw = bits_of(state)
    found = logits(state, evaluator)
    assert bits_of(state) == raw

    other = train_state()
    other.head.load_weights(list(state.weights().items()))
    np.testing.assert_array_equal(found, logits(other, Evaluator(other.head)))
    other.head.load_weights(list(dict(tree_flatten(state.head.parameters())).items()))
    assert np.abs(found - logits(other, Evaluator(other.head))).max() > 1e-3


def test_an_evaluation_that_is_broken_off_leaves_the_raw_weights() -> None:
    """The checkpoint of an interrupted run is written after it."""
    state = averaging()
    state.train_step(random_batch(0))
    before = bits_of(state)
    with pytest.raises(KeyboardInterrupt), state.averaged():
        raise KeyboardInterrupt
    assert bits_of(state) == before


def memory_of(arch: dict[str, Any], **changes: Any) -> tuple[list[int], int, int]:
    """Bytes of each trainable array; bytes held after some steps, and at most in a step and an evaluation."""
    gc.collect()  # what earlier tests have left
    before = mx.get_active_memory()
    state = train_state(pretrain_config(arch, global_batch_size=2, **changes))
    evaluator = Evaluator(state.head)
    for step in range(8):  # streams overlap differently from step to step
        if step == 2:
            mx.reset_peak_memory()
        mx.eval(state.train_step(random_batch(step, batch=2)), state.carry, state.arrays)
    with state.averaged():
        *_, last = evaluator.outer_steps(random_batch(0, batch=2))
        mx.eval(last)
    sizes = [array.nbytes for _, array in tree_flatten(state.head.trainable_parameters())]
    del last
    return sizes, mx.get_active_memory() - before, mx.get_peak_memory() - before


def test_an_average_takes_one_more_copy_of_the_weights() -> None:
    arch = {"hidden_size": 512, "num_heads": 8, "puzzle_emb_ndim": 0}  # far more weights than anything else
    sizes, held, peak = memory_of(arch)
    _, held_with, peak_with = memory_of(arch, ema=True)
    assert sum(sizes) > 4 * max(sizes)
    assert held_with - held == pytest.approx(sum(sizes), rel=0.05)
    assert peak_with - peak < sum(sizes) + 2 * max(sizes)  # an array or two while they are replaced


# ------------------------------------------------------------------------------------------------ freeze_weights


@pytest.mark.parametrize("arch", FAMILY.values(), ids=FAMILY)
def test_frozen_weights_leave_the_puzzle_embedding_to_be_trained(arch: dict[str, Any]) -> None:
    state = train_state(pretrain_config(arch, freeze_weights=True, lr_warmup_steps=1))
    first = state.train_step(random_batch(0)).metrics["lm_loss"].item()
    before = bits_of(state)
    losses = [first, *(state.train_step(random_batch(0)).metrics["lm_loss"].item() for _ in range(8))]
    after = bits_of(state)
    assert losses[-1] < losses[0]
    table = {name for name in before if name.startswith("model.") and after[name] != before[name]}
    assert table == {"model.inner.puzzle_emb.weights"}
    assert not any(name.endswith((".m", ".v")) for name in after)
    assert state.num_parameters == train_state(pretrain_config(arch)).num_parameters > 0


def test_frozen_weights_without_a_puzzle_embedding_are_refused() -> None:
    with pytest.raises(UserError, match="freeze_weights leaves the puzzle embedding to be trained, and this model has"):
        train_state(pretrain_config({"puzzle_emb_ndim": 0}, freeze_weights=True))
