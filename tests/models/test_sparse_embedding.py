"""Puzzle embedding rows move as SignSGD says, once for each identifier, and nothing else in a huge table moves."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sparse_embedding import SparseEmbedding, sign_sgd_rows
from tests.helpers.configs import pretrain_config, random_batch, sizes, train_state

MIB = 2**20


def literal_sign_sgd(
    table: np.ndarray, ids: list[int], grads: np.ndarray, lr: float, weight_decay: float
) -> np.ndarray:
    """The definition, one identifier after the other."""
    result = table.copy()
    for identifier in set(ids):
        total = np.zeros(table.shape[1], np.float32)
        for position, other in enumerate(ids):
            if other == identifier:
                total += grads[position]
        decayed = table[identifier] * (np.float32(1) - np.float32(lr) * np.float32(weight_decay))
        result[identifier] = decayed - np.float32(lr) * np.sign(total)
    return result


@settings(deadline=None, max_examples=100)
@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    dims=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    lr=st.sampled_from([0.0, 1e-3, 0.5]),
    weight_decay=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_rows_follow_the_definition(ids: list[int], dims: int, seed: int, lr: float, weight_decay: float) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(7, dims)).astype(np.float32)
    # halves cancel exactly, so that a sum of zero, whose sign is 0, occurs among repeated identifiers
    grads = rng.integers(-2, 3, size=(len(ids), dims)).astype(np.float32) / 2

    embedding = SparseEmbedding(7, dims)
    embedding.weights = mx.array(table)
    indices = mx.array(ids, mx.int32)
    sign_sgd_rows(embedding.weights, indices, embedding(indices), mx.array(grads), mx.array(lr), weight_decay)

    expected = literal_sign_sgd(table, ids, grads, lr, weight_decay)
    np.testing.assert_allclose(np.array(embedding.weights), expected, rtol=0, atol=1e-6)
    untouched = sorted(set(range(7)) - set(ids))
    np.testing.assert_array_equal(np.array(embedding.weights)[untouched], table[untouched])


def test_training_step_updates_the_rows_of_the_carried_data_only() -> None:
    # Rows that have not halted keep their old puzzle, so its identifier is the one to update, not the new batch's.
    state = train_state(pretrain_config({"halt_exploration_prob": 0.0}), keep={"gradients"})
    first = random_batch(0) | {"puzzle_identifiers": mx.array([0, 0, 1, 1, 1, 2, 2, 0], mx.int32)}
    second = random_batch(1) | {"puzzle_identifiers": mx.full((8,), 4, mx.int32)}
    state.train_step(first)
    assert not state.carry["halted"].any().item()
    before = np.array(state.head.model.inner.puzzle_emb.weights)
    kept = state.train_step(second).outputs

    after = np.array(state.head.model.inner.puzzle_emb.weights)
    ids = first["puzzle_identifiers"].tolist()
    expected = literal_sign_sgd(before, ids, np.array(kept["gradients"][1]), state.learning_rates(2)[1], 0.1)
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-7)
    assert (after[:3] != before[:3]).any()
    np.testing.assert_array_equal(after[3:], before[3:])


@pytest.mark.slow
def test_a_million_identifiers_train_without_a_second_table() -> None:
    # ARC has about a million identifiers of 512: 2 GB. A dense gradient or a copied table would double that.
    config = pretrain_config({"puzzle_emb_ndim": 512})
    state = train_state(config, sizes(num_puzzle_identifiers=1_000_000))
    mx.eval(state.arrays)
    table_bytes = state.head.model.inner.puzzle_emb.weights.nbytes
    assert table_bytes == 1_000_000 * 512 * 4

    for step in range(6):
        batch = random_batch(step, identifiers=1_000_000)
        mx.eval(batch)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        metrics = state.train_step(batch).metrics
        mx.eval(metrics, state.carry, state.arrays)
        assert mx.get_peak_memory() - before < 32 * MIB, f"step {step}"
    touched = np.unique(np.array(state.carry["current_data"]["puzzle_identifiers"]))
    assert np.array(state.head.model.inner.puzzle_emb.weights[mx.array(touched)]).any(axis=1).all()
