"""URM's core: the convolution, the loops with gradient, names, and its own name for the outer steps."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from common.errors import UserError
from models.common import random_keys
from models.urm.urm import TokenConvolution
from tests.helpers.configs import TINY_URM, pretrain_config, random_batch, train_state


def test_the_convolution_sees_the_token_before() -> None:
    convolution = TokenConvolution(3, random_keys(mx.random.key(0)))
    u = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    weight, bias = np.array(convolution.weight), np.array(convolution.bias)
    expected = np.zeros_like(u)
    for t in range(5):
        before = u[:, t - 1] if t > 0 else np.zeros((2, 3))
        expected[:, t] = weight[:, 0, 0] * before + weight[:, 0, 1] * u[:, t] + bias
    np.testing.assert_allclose(np.array(convolution(mx.array(u))), expected, atol=1e-6)


def test_the_last_loops_are_differentiated_and_no_others() -> None:
    inner = train_state(pretrain_config(TINY_URM | {"H_cycles": 2, "L_cycles": 2, "num_layers": 2})).head.model.inner
    hidden, embeddings = (mx.random.normal((1, 17, 32), key=mx.random.key(i)) for i in range(2))

    def ours(hidden: mx.array, embeddings: mx.array) -> mx.array:
        return inner({"current_hidden": hidden}, embeddings)[1]["logits"].sum()

    def literally(hidden: mx.array, embeddings: mx.array) -> mx.array:
        for loop in range(4):
            hidden = hidden + (mx.stop_gradient(embeddings) if loop < 2 else embeddings)
            for layer in inner.layers:
                hidden = layer(hidden)
            hidden = mx.stop_gradient(hidden) if loop < 2 else hidden
        return inner.lm_head(hidden[:, 1:]).sum()

    value, gradients = mx.value_and_grad(ours, (0, 1))(hidden, embeddings)
    expected_value, expected = mx.value_and_grad(literally, (0, 1))(hidden, embeddings)
    np.testing.assert_allclose(value.item(), expected_value.item(), rtol=1e-5)
    assert not gradients[0].any()
    np.testing.assert_allclose(np.array(gradients[1]), np.array(expected[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("puzzle_emb_ndim", [0, 32, 40])
def test_any_width_of_the_puzzle_embedding_trains(puzzle_emb_ndim: int) -> None:
    state = train_state(pretrain_config(TINY_URM | {"puzzle_emb_ndim": puzzle_emb_ndim}), keep={"logits"})
    values = []
    for _ in range(6):
        metrics, kept, *_ = state.train_step(random_batch(0))
        values.append(metrics["lm_loss"].item())
    assert values[-1] < values[0]
    assert kept["logits"].shape == (8, 16, 6)
    assert state.carry["current_hidden"].shape == (8, -(-puzzle_emb_ndim // 32) + 16, 32)
    assert "q_continue_loss" not in metrics


def test_parameters_have_the_published_names() -> None:
    expected = {"init_hidden", "embed_tokens.embedding_weight", "lm_head.weight", "q_head.weight", "q_head.bias"}
    layer = ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight", "mlp.gate_up_proj.weight", "mlp.down_proj.weight"]
    layer += ["mlp.dwconv.weight", "mlp.dwconv.bias"]
    expected |= {"puzzle_emb.weights", *(f"layers.0.{name}" for name in layer)}
    found = dict(tree_flatten(train_state(pretrain_config(TINY_URM)).head.parameters()))
    assert found.keys() == {f"model.inner.{name}" for name in expected}
    assert found["model.inner.layers.0.mlp.dwconv.weight"].shape == (256, 1, 2)


def test_loops_are_the_outer_steps() -> None:
    state = train_state(pretrain_config(TINY_URM | {"loops": 5}))
    assert state.head.model.config.halt_max_steps == 5
    with pytest.raises(UserError, match=r"arch\.loops = 0 .*greater than or equal to 1"):
        train_state(pretrain_config(TINY_URM | {"loops": 0}))
    with pytest.raises(UserError, match=r"unknown key 'arch\.halt_max_steps'"):
        train_state(pretrain_config(TINY_URM | {"halt_max_steps": 5}))
