"""HRM's core: puzzle tokens before the puzzle, any cycles and layers, the gradient through the last updates alone."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.helpers.configs import pretrain_config, random_batch, train_state


@pytest.mark.parametrize("puzzle_emb_ndim", [0, 5, 32, 40, 64, 70])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_any_width_of_the_puzzle_embedding_trains(puzzle_emb_ndim: int, positions: str) -> None:
    state = train_state(
        pretrain_config({"puzzle_emb_ndim": puzzle_emb_ndim, "pos_encodings": positions}), keep={"logits"}
    )
    first = None
    for _ in range(6):
        metrics, kept, *_ = state.train_step(random_batch(0))
        first = first if first is not None else metrics["lm_loss"].item()
    assert metrics["lm_loss"].item() < first
    assert kept["logits"].shape == (8, 16, 6)

    names = dict(tree_flatten(state.head.parameters())).keys()
    puzzle_tokens = math.ceil(puzzle_emb_ndim / 32)
    assert state.carry["z_H"].shape == (8, puzzle_tokens + 16, 32)
    assert ("model.inner.puzzle_emb.weights" in names) == (puzzle_emb_ndim > 0)
    if puzzle_emb_ndim > 0:
        table = state.head.model.inner.puzzle_emb.weights
        assert table.shape == (5, puzzle_emb_ndim)
        used = np.unique(np.array(random_batch(0)["puzzle_identifiers"]))
        assert np.array(table)[used].any(axis=1).all()


def test_puzzle_rows_fill_whole_tokens_before_the_puzzle() -> None:
    state = train_state(pretrain_config({"puzzle_emb_ndim": 40}))
    inner = state.head.model.inner
    rows = mx.arange(80).reshape(2, 40).astype(mx.float32)
    embedded = np.array(inner.input_embeddings({"inputs": mx.ones((2, 16), mx.int32)}, rows)) / math.sqrt(32)
    flat = embedded[:, :2].reshape(2, 64)
    np.testing.assert_allclose(flat[:, :40], np.array(rows), rtol=1e-6)
    assert not flat[:, 40:].any()


@pytest.mark.parametrize(
    "cycles", [{"H_cycles": 1, "L_cycles": 3}, {"H_cycles": 3, "L_cycles": 1, "H_layers": 2}, {"halt_max_steps": 1}]
)
def test_any_cycles_and_layers_train(cycles: dict[str, int]) -> None:
    state = train_state(pretrain_config(cycles))
    values = [state.train_step(random_batch(0)).metrics["lm_loss"].item() for _ in range(6)]
    assert values[-1] < values[0]


def test_gradient_flows_through_the_last_updates_alone() -> None:
    # The state of the previous outer step, and the cycles before the last, are constants (1-step gradient).
    inner = train_state(pretrain_config({"H_cycles": 2, "L_cycles": 2})).head.model.inner
    z = mx.random.normal((1, 17, 32), key=mx.random.key(0))
    embeddings = mx.random.normal((1, 17, 32), key=mx.random.key(1))

    def logits(z: mx.array, embeddings: mx.array) -> mx.array:
        return inner({"z_H": z, "z_L": z}, embeddings)[1]["logits"].sum()

    gradient = mx.grad(lambda z: logits(z, embeddings))(z)
    assert not gradient.any()

    def last_updates(embeddings: mx.array) -> mx.array:
        fixed, z_H, z_L = mx.stop_gradient(embeddings), z, z
        z_L = inner.L_level(z_L, z_H + fixed)
        z_L = inner.L_level(z_L, z_H + fixed)
        z_H = inner.H_level(z_H, z_L)
        z_L = inner.L_level(z_L, z_H + fixed)
        z_H, z_L = mx.stop_gradient(z_H), mx.stop_gradient(z_L)
        z_L = inner.L_level(z_L, z_H + embeddings)
        return inner.lm_head(inner.H_level(z_H, z_L)[:, 1:]).sum()

    value, expected = mx.value_and_grad(last_updates)(embeddings)
    found, gradient = mx.value_and_grad(lambda e: logits(z, e))(embeddings)
    np.testing.assert_allclose(found.item(), value.item(), rtol=1e-5)
    np.testing.assert_allclose(np.array(gradient), np.array(expected), rtol=1e-4, atol=1e-5)
