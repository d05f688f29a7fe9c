"""A freshly initialised model has the published statistics; otherwise training starts from somewhere else."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from models.common import truncated_normal
from tests.helpers.configs import DEFAULT_ARCH, pretrain_config, sizes
from utils.model import build_model, count_parameters

SUDOKU = sizes(seq_len=81, vocab_size=11, num_puzzle_identifiers=1)


@pytest.fixture(scope="module")
def default_parameters() -> dict[str, np.ndarray]:
    head = build_model(pretrain_config(DEFAULT_ARCH | {"pos_encodings": "learned"}).arch, SUDOKU, mx.random.key(0))
    return {name: np.array(array) for name, array in tree_flatten(head.parameters())}


def test_default_model_has_the_published_size() -> None:
    head = build_model(pretrain_config(DEFAULT_ARCH).arch, SUDOKU, mx.random.key(0))
    assert count_parameters(head) == 27_275_266


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_truncated_normal_is_rescaled_to_the_asked_deviation(std: float) -> None:
    draw = np.array(truncated_normal((1000, 1000), std, mx.random.key(1)))
    assert draw.std() == pytest.approx(std, rel=5e-3)
    assert draw.mean() == pytest.approx(0.0, abs=5e-3 * std)
    bound = 2 * 1.13685 * std
    assert 0.99 * bound < np.abs(draw).max() <= bound * (1 + 1e-5)
    # cut at two standard deviations of the unit normal: a plain normal of this deviation goes on to 4.9
    inner = np.mean(np.abs(draw) < std)
    assert inner == pytest.approx(math.erf(1 / 1.13685 / math.sqrt(2)) / math.erf(math.sqrt(2)), abs=3e-3)


def test_linear_maps_and_embeddings_have_the_deviation_of_their_input_size(default_parameters: dict) -> None:
    checked = 0
    for name, array in default_parameters.items():
        if not name.endswith(("proj.weight", "lm_head.weight", "embedding_weight")):
            continue
        expected = 1 / math.sqrt(array.shape[1])  # the input size of a map, the width of an embedding
        tolerance = 5 / math.sqrt(2 * array.size)  # five standard errors of a sample deviation
        assert array.std() == pytest.approx(expected, rel=tolerance), name
        assert np.abs(array).max() <= 2 * 1.13685 * expected * (1 + 1e-5), name
        checked += 1
    assert checked == 8 * 4 + 3


def test_heads_puzzle_embedding_and_initial_states(default_parameters: dict) -> None:
    p = default_parameters
    assert not p["model.inner.q_head.weight"].any()
    np.testing.assert_array_equal(p["model.inner.q_head.bias"], [-5.0, -5.0])
    assert p["model.inner.puzzle_emb.weights"].shape == (1, 512)
    assert not p["model.inner.puzzle_emb.weights"].any()
    for name in ("model.inner.H_init", "model.inner.L_init"):
        assert p[name].std() == pytest.approx(1.0, abs=0.15)
    assert not np.array_equal(p["model.inner.H_init"], p["model.inner.L_init"])


def test_no_two_weights_are_the_same_draw(default_parameters: dict) -> None:
    blocks = [array for name, array in default_parameters.items() if name.endswith("o_proj.weight")]
    for i, first in enumerate(blocks):
        for second in blocks[i + 1 :]:
            assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_seed_decides_the_weights() -> None:
    def weights(seed: int) -> mx.array:
        return build_model(pretrain_config().arch, sizes(), mx.random.key(seed)).model.inner.lm_head.weight

    assert mx.array_equal(weights(3), weights(3))
    assert not mx.array_equal(weights(3), weights(4))


def test_initial_states_are_never_trained_and_are_saved_in_the_forward_dtype() -> None:
    arch = pretrain_config({"forward_dtype": "bfloat16"}).arch
    head = build_model(arch, sizes(), mx.random.key(0))
    trainable = dict(tree_flatten(head.trainable_parameters()))
    everything = dict(tree_flatten(head.parameters()))
    fixed = {"model.inner.H_init", "model.inner.L_init", "model.inner.puzzle_emb.weights"}
    assert everything.keys() - trainable.keys() == fixed
    assert everything["model.inner.H_init"].dtype == mx.bfloat16
    assert all(array.dtype == mx.float32 for array in trainable.values())
