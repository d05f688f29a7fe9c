"""TRM's core: its forms, its tokens, and the gradient through the whole last cycle."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from common.errors import UserError
from tests.helpers.configs import TINY_TRM, TINY_TRM_MLP, pretrain_config, random_batch, train_state

FORMS = {
    "rope": TINY_TRM,
    "learned": TINY_TRM | {"pos_encodings": "learned"},
    "none": TINY_TRM | {"pos_encodings": "none"},
    "mlp_t": TINY_TRM_MLP,
    "mlp_t-learned": TINY_TRM_MLP | {"pos_encodings": "learned"},
    "as-many-tokens-as-needed": TINY_TRM | {"puzzle_emb_len": 0, "puzzle_emb_ndim": 40},
    "without-puzzle-embedding": TINY_TRM | {"puzzle_emb_ndim": 0},
    "one-step": TINY_TRM | {"halt_max_steps": 1, "H_cycles": 1},
}
TOKENS = {"as-many-tokens-as-needed": 2, "without-puzzle-embedding": 0}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains(form: str) -> None:
    state = train_state(pretrain_config(FORMS[form]), keep={"logits", "q_continue_logits"})
    values = []
    for _ in range(6):
        metrics, kept, *_ = state.train_step(random_batch(0))
        values.append(metrics["lm_loss"].item())
    assert values[-1] < values[0]
    assert kept["logits"].shape == (8, 16, 6)
    assert state.carry["z_H"].shape == state.carry["z_L"].shape == (8, TOKENS.get(form, 3) + 16, 32)
    assert "q_continue_loss" not in metrics


@pytest.mark.parametrize("form", ["rope", "learned", "mlp_t", "without-puzzle-embedding"])
def test_parameters_have_the_published_names(form: str) -> None:
    state = train_state(pretrain_config(FORMS[form]))
    expected = {"H_init", "L_init", "embed_tokens.embedding_weight", "lm_head.weight", "q_head.weight", "q_head.bias"}
    mixer = ["mlp_t.gate_up_proj", "mlp_t.down_proj"] if form == "mlp_t" else ["self_attn.qkv_proj", "self_attn.o_proj"]
    layer = [*mixer, "mlp.gate_up_proj", "mlp.down_proj"]
    expected |= {f"L_level.layers.0.{name}.weight" for name in layer}
    expected |= {"embed_pos.embedding_weight"} if form == "learned" else set()
    expected |= set() if form == "without-puzzle-embedding" else {"puzzle_emb.weights"}
    found = dict(tree_flatten(state.head.parameters()))
    assert found.keys() == {f"model.inner.{name}" for name in expected}
    if form == "mlp_t":
        assert found["model.inner.L_level.layers.0.mlp_t.gate_up_proj.weight"].shape == (512, 19)  # of t = 3 + 16


def test_the_last_cycle_is_differentiated_and_no_other() -> None:
    inner = train_state(pretrain_config(TINY_TRM | {"H_cycles": 3, "L_cycles": 2})).head.model.inner
    z_H, z_L, embeddings = (mx.random.normal((1, 19, 32), key=mx.random.key(i)) for i in range(3))

    def ours(z_H: mx.array, z_L: mx.array, embeddings: mx.array) -> mx.array:
        return inner({"z_H": z_H, "z_L": z_L}, embeddings)[1]["logits"].sum()

    def literally(z_H: mx.array, z_L: mx.array, embeddings: mx.array) -> mx.array:
        fixed = mx.stop_gradient(embeddings)
        for _ in range(2):
            for _ in range(2):
                z_L = inner.L_level(z_L, z_H + fixed)
            z_H = inner.L_level(z_H, z_L)
        z_H, z_L = mx.stop_gradient(z_H), mx.stop_gradient(z_L)
        z_L = inner.L_level(z_L, z_H + embeddings)
        z_L = inner.L_level(z_L, z_H + embeddings)
        return inner.lm_head(inner.L_level(z_H, z_L)[:, 3:]).sum()

    value, gradients = mx.value_and_grad(ours, (0, 1, 2))(z_H, z_L, embeddings)
    expected_value, expected = mx.value_and_grad(literally, (0, 1, 2))(z_H, z_L, embeddings)
    np.testing.assert_allclose(value.item(), expected_value.item(), rtol=1e-5)
    assert not gradients[0].any()
    assert not gradients[1].any()
    np.testing.assert_allclose(np.array(gradients[2]), np.array(expected[2]), rtol=1e-4, atol=1e-5)
    assert np.abs(np.array(gradients[2])).max() > 0.1


def test_a_token_mlp_block_is_normed_over_the_tokens() -> None:
    """Not over the channels, as all other norms are."""
    block = train_state(pretrain_config(TINY_TRM_MLP)).head.model.inner.L_level.layers[0]
    x = mx.random.normal((2, 19, 32), key=mx.random.key(0))

    def normed(x: np.ndarray, axis: int) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(axis=axis, keepdims=True) + 1e-5)

    over_tokens = np.array(block.mlp_t(x.transpose(0, 2, 1))).transpose(0, 2, 1)
    h = normed(np.array(x) + over_tokens, axis=1)
    expected = normed(h + np.array(block.mlp(mx.array(h))), axis=2)
    np.testing.assert_allclose(np.array(block(x)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_ACT_continue": False}, "no_ACT_continue = False has no working definition in the PyTorch code"),
        ({"puzzle_emb_ndim": 128}, "puzzle_emb_len = 3 tokens of hidden_size = 32 don't hold puzzle_emb_ndim = 128"),
        ({"pos_encodings": "sine"}, "arch.pos_encodings = 'sine'"),
        ({"num_heads": 3}, "num_heads = 3 does not divide hidden_size = 32"),
        ({"mixer": {"name": "a@B"}}, "unknown key 'arch.mixer'"),
    ],
    ids=str,
)
def test_what_can_not_be_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        train_state(pretrain_config(TINY_TRM | changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
