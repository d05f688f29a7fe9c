"""A freshly initialised model has the published statistics; otherwise training starts from somewhere else."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from mlx.utils import tree_flatten

from dataset.metadata import PuzzleDatasetMetadata
from models.common import truncated_normal
from tests.helpers.configs import DEFAULT_ARCH, FAMILY, pretrain_config, sizes
from tests.helpers.tiny_data import ROOT
from utils.config import parse_pretrain_config
from utils.hydra_config import plain_values
from utils.model import build_model, count_parameters

INNER = "model.inner."
SUDOKU = sizes(seq_len=81, vocab_size=11, num_puzzle_identifiers=1)


@pytest.fixture(scope="module")
def default_parameters() -> dict[str, np.ndarray]:
    head = build_model(pretrain_config(DEFAULT_ARCH | {"pos_encodings": "learned"}).arch, SUDOKU, mx.random.key(0))
    return {name: np.array(array) for name, array in tree_flatten(head.parameters())}


MAZE, ARC = (sizes(seq_len=900, vocab_size=n, num_puzzle_identifiers=1) for n in (6, 12))


@pytest.mark.parametrize(
    ("overrides", "data", "parameters"),
    [
        (["arch=hrm_v1"], SUDOKU, 27_275_266),
        (["arch=trm", "++arch.mlp_t=True", "++arch.pos_encodings=none"], SUDOKU, 5_028_866),
        (["arch=trm"], SUDOKU, 6_828_034),
        (["arch=trm"], MAZE, 6_822_914),
        (["arch=trm"], ARC, 6_829_058),
        (["arch=urm"], ARC, 13_663_234),
    ],
    ids=["hrm", "trm-mlp-sudoku", "trm-sudoku", "trm-maze", "trm-arc", "urm-arc"],
)
def test_default_models_have_the_published_sizes(
    overrides: list[str], data: PuzzleDatasetMetadata, parameters: int
) -> None:
    with initialize_config_dir(str(ROOT / "config"), version_base=None):
        config = parse_pretrain_config(plain_values(compose("cfg_pretrain", overrides)))
    head = build_model(config.arch, data, mx.random.key(0))
    assert count_parameters(head) == parameters


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


@pytest.mark.parametrize("arch", ["trm", "trm_mlp", "urm"])
def test_the_other_architectures_begin_like_hrm(arch: str) -> None:
    """Maps and embeddings by the size of their input, Q head and puzzle embedding at rest; the convolution uniform."""
    wide = {"hidden_size": 256, "num_heads": 4, "puzzle_emb_ndim": 256}
    head = build_model(pretrain_config(FAMILY[arch] | wide).arch, SUDOKU, mx.random.key(0))
    parameters = {name: np.array(array) for name, array in tree_flatten(head.parameters())}
    initial = {name for name in parameters if name.endswith(("H_init", "L_init", "init_hidden"))}
    assert len(initial) == (1 if arch == "urm" else 2)
    for name, array in parameters.items():
        if name.endswith(("proj.weight", "lm_head.weight", "embedding_weight")):
            expected = 1 / math.sqrt(array.shape[1])
            assert array.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * array.size)), name
            assert np.abs(array).max() <= 2 * 1.13685 * expected * (1 + 1e-5), name
        elif ".dwconv." in name:
            assert np.abs(array).max() <= 1 / math.sqrt(2)
            assert array.std() == pytest.approx(1 / math.sqrt(6), rel=5 / math.sqrt(2 * array.size)), name
        elif name in initial:
            assert array.std() == pytest.approx(1.0, abs=0.2)
        else:
            expected = {"q_head.weight": 0, "q_head.bias": -5, "puzzle_emb.weights": 0}[name.removeprefix(INNER)]
            assert (array == expected).all()
    assert parameters.keys() - dict(tree_flatten(head.trainable_parameters())).keys() == {
        *initial,
        f"{INNER}puzzle_emb.weights",
    }


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
