"""The compiled step: traced once, made of what GPUs can do, and in bfloat16 on the same course as in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from common.errors import UserError
from models.kernels import arctan2_of_square, plain_forms
from models.optimizers import AdamATan2
from tests.helpers.configs import count_calls, mlx_compiles, pretrain_config, random_batch, sizes, train_state
from utils.checkpoints.safetensors_file import read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.evaluation.evaluate import Evaluator, make_eval_step
from utils.train.schedule import learning_rate
from utils.train.state import make_train_step

# The primitives that MLX implements for the CPU alone, by the names they have in an exported graph.
CPU_ONLY = {"Cholesky", "Eig", "Eigh", "Inverse", "LUF", "QRF", "SVD", "Load"}


def graph_of(function: Callable[..., Any], *arguments: Any) -> tuple[set[str], set[str]]:
    """Names of the primitives, and of all dtypes, in the graph that `function` builds. Results are what it returns."""
    primitives, dtypes = set(), set()

    def visit(node: dict[str, Any]) -> None:
        if node["type"] == "primitive":
            primitives.add(node["name"])
        for key in ("inputs", "outputs", "constants"):
            for _, *entry in node.get(key, ()):
                dtypes.update(str(part) for part in entry if isinstance(part, mx.Dtype))
                dtypes.update(str(part.dtype) for part in entry if isinstance(part, mx.array))

    names, arrays = zip(*tree_flatten(arguments), strict=True)

    def on_arrays(*arrays: mx.array) -> list[mx.array]:
        results = function(*tree_unflatten(list(zip(names, arrays, strict=True))))
        return [array for _, array in tree_flatten(results)]

    mx.export_function(visit, on_arrays, *arrays)
    return primitives, dtypes


@pytest.fixture(params=["rope-stablemax", "learned-softmax"])
def arch(request: pytest.FixtureRequest) -> dict[str, Any]:
    positions, loss = request.param.split("-")
    return {"pos_encodings": positions, "loss": {"name": "losses@ACTLossHead", "loss_type": f"{loss}_cross_entropy"}}


@pytest.mark.parametrize("forward_dtype", ["float32", "bfloat16"])
def test_graphs_hold_no_float64_and_nothing_for_the_cpu_alone(arch: dict[str, Any], forward_dtype: str) -> None:
    # Metal has no float64, and a CPU-only primitive would end the run there at the first step.
    state = train_state(pretrain_config(arch | {"forward_dtype": forward_dtype}))
    mx.eval(state.arrays)
    batch = random_batch(0)
    carry = state.head.model.initial_carry(batch)
    step = make_train_step(state.head, state.optimizer, state.random, state.config, state.ranks)

    def train(*arguments: Any) -> Any:
        return step(*arguments), state.arrays

    rates = mx.array(1e-3), mx.array(1e-2)
    for function, arguments, expected in (
        (make_eval_step(state.head, "max"), (carry, batch), {"Matmul", "Gather", "ArgReduce"}),
        (train, (carry, batch, *rates, mx.array(0.0)), {"Matmul", "ArcTan2", "Scatter", "RandomBits"}),
    ):
        with plain_forms():  # the graph that is traced there
            primitives, dtypes = graph_of(function, *arguments)
        assert expected <= primitives
        assert not primitives & CPU_ONLY
        assert {"mlx.core.float32", f"mlx.core.{forward_dtype}"} <= dtypes
        assert not {name for name in dtypes if "float64" in name or "complex" in name}


def test_the_graph_walk_would_notice() -> None:
    def inverse(x: mx.array) -> mx.array:
        return mx.linalg.inv(x, stream=mx.cpu).astype(mx.float64, stream=mx.cpu)

    primitives, dtypes = graph_of(inverse, mx.eye(2))
    assert primitives & CPU_ONLY
    assert "mlx.core.float64" in dtypes


def test_a_step_is_traced_once_and_never_again(arch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    state = train_state(pretrain_config(arch))
    evaluator = Evaluator(state.head)
    for step in range(5):
        state.train_step(random_batch(step))
        for _ in evaluator.outer_steps(random_batch(step)):
            pass
    assert len(calls) == 2 or not mlx_compiles()  # once to train, once to evaluate


def test_a_restored_state_keeps_its_compiled_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = count_calls(monkeypatch)
    state = train_state()
    state.train_step(random_batch(0))
    write_safetensors(tmp_path / "f", {name: host_tensor(array) for name, array in state.named_arrays().items()})
    state.restore(1, read_safetensors(tmp_path / "f"), "here")
    state.train_step(random_batch(1))
    assert len(calls) == 1 or not mlx_compiles()


def test_evaluation_sees_the_weights_of_the_moment() -> None:
    state = train_state()
    evaluator = Evaluator(state.head)
    batch = random_batch(0)

    def logits() -> np.ndarray:
        *_, (_, _, outputs) = evaluator.outer_steps(batch)
        return np.array(outputs["logits"])

    before = logits()
    for _ in range(3):
        state.train_step(batch)
    assert np.abs(logits() - before).max() > 1e-3


def losses(arch: dict[str, Any], steps: int) -> np.ndarray:
    state = train_state(pretrain_config(arch | {"halt_exploration_prob": 0.0}))
    values = [state.train_step(random_batch(step % 4)).metrics["lm_loss"] for step in range(steps)]
    return np.array(mx.stack(values))


@pytest.mark.parametrize("forward_dtype", ["bfloat16", "float16"])
def test_half_precision_stays_on_the_course_of_float32(forward_dtype: str) -> None:
    # On four batches, again and again, the loss falls by a quarter and more in 50 steps; the two curves stay within
    # 2 % of the first loss of one another at every step, and within 0.5 % on average.
    wide, half = losses({}, 50), losses({"forward_dtype": forward_dtype}, 50)
    assert wide[-4:].mean() < wide[:4].mean() * 3 / 4
    difference = np.abs(half - wide) / wide[0]
    assert difference.max() < 0.02
    assert difference.mean() < 0.005


def test_same_seed_same_run_and_other_seed_other_run() -> None:
    def run(seed: int) -> dict[str, np.ndarray]:
        state = train_state(pretrain_config({"halt_exploration_prob": 0.5}, seed=seed))
        for step in range(4):
            state.train_step(random_batch(step))
        arrays = {"carry": state.carry, "head": state.head.parameters(), "optimizer": state.optimizer.state}
        return {name: np.array(array) for name, array in tree_flatten(arrays)}

    first, again, other = run(0), run(0), run(1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


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


def test_adam_atan2_follows_its_definition() -> None:
    rng = np.random.default_rng(0)
    parameter = rng.normal(size=(4, 3)).astype(np.float32)
    optimizer = AdamATan2(0.1, (0.9, 0.95), 0.2)
    values = {"weight": mx.array(parameter), "bias": mx.array(parameter[0])}
    p, m, v = parameter.astype(np.float64), np.zeros((4, 3)), np.zeros((4, 3))
    for t in range(1, 7):
        gradient = rng.normal(size=(4, 3)).astype(np.float32) * 10.0 ** -rng.integers(0, 9)
        gradient[0, 0] = 0.0  # atan2(0, 0) = 0: an unused parameter only decays
        lr = 0.1 / t
        optimizer.learning_rate = mx.array(lr)
        values = optimizer.apply_gradients({"weight": mx.array(gradient), "bias": mx.array(gradient[0])}, values)

        p *= 1 - lr * 0.2
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient.astype(np.float64) ** 2
        p -= lr / (1 - 0.9**t) * np.arctan2(m, np.sqrt(v) / np.sqrt(1 - 0.95**t))
        np.testing.assert_allclose(np.array(values["weight"]), p, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.array(values["bias"]), p[0], rtol=0, atol=1e-6)


def test_arctan2_is_as_accurate_as_float32() -> None:
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(size=100_000) * 10.0 ** rng.integers(-15, 4, 100_000), [0.0, 0.0, 1.0, -1.0, 1e-30]])
    x = np.concatenate([np.abs(rng.normal(size=100_000)) * 10.0 ** rng.integers(-15, 4, 100_000), [0, 2.0, 0, 0, 0]])
    y, square = y.astype(np.float32), np.square(x).astype(np.float32)
    found = np.array(arctan2_of_square(mx.array(y), mx.array(square)))
    np.testing.assert_allclose(found, np.arctan2(y, np.sqrt(square.astype(np.float64))), rtol=4e-7, atol=0)


def test_learning_rate_warms_up_and_then_follows_a_cosine() -> None:
    def rate(step: int, min_ratio: float = 0.1) -> float:
        return learning_rate(step, base=2.0, warmup_steps=10, total_steps=110, min_ratio=min_ratio)

    assert rate(1) == pytest.approx(0.2)
    assert rate(9) == pytest.approx(1.8)
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(2.0 * 0.55)
    assert rate(110) == pytest.approx(0.2)
    assert rate(77, min_ratio=1.0) == pytest.approx(2.0)
    assert learning_rate(1, base=2.0, warmup_steps=0, total_steps=1, min_ratio=1.0) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ({"num_heads": 3}, r"num_heads = 3 does not divide hidden_size = 32"),
        ({"hidden_size": 30, "num_heads": 2}, r"hidden_size / num_heads = 15 is odd"),
        ({"H_layers": "four"}, r"arch\.H_layers = 'four'"),
        ({"hidden_sizes": 32}, r"unknown key 'arch\.hidden_sizes'"),
        ({"pos_encodings": "alibi"}, r"arch\.pos_encodings = 'alibi'.*'rope' or 'learned'"),
        ({"forward_dtype": "float64"}, r"arch\.forward_dtype = 'float64'"),
        ({"hidden_size": 1_000_000_000}, r"arch\.hidden_size = 1000000000; at most 16,384"),
        ({"puzzle_emb_ndim": 1 << 40}, r"arch\.puzzle_emb_ndim = 1099511627776; at most 16,384"),
        ({"num_heads": 50_000}, r"arch\.num_heads = 50000; at most 16,384"),
        ({"H_layers": 1_000_000_000}, r"arch\.H_layers = 1000000000; at most 16,384"),
        ({"L_cycles": 1_000_000}, r"arch\.L_cycles = 1000000; at most 16,384"),
        ({"H_cycles": 256, "L_cycles": 256}, r"65,536 blocks in one outer step.* at most 4,096"),
        ({"halt_max_steps": 1 << 33}, r"arch\.halt_max_steps = 8589934592; at most 16,384"),
        ({"expansion": 1e300}, r"arch\.expansion = 1e\+300; at most 16,384"),
        ({"expansion": float("nan")}, r"arch\.expansion = nan"),
        ({"rope_theta": float("inf")}, r"arch\.rope_theta = inf"),
        ({"rms_norm_eps": 1e300}, r"arch\.rms_norm_eps = 1e\+300"),
        ({"H_layers": [[["x" * 5000] * 1000] * 1000]}, r"arch\.H_layers\.0 = \[.{0,100} is too long"),
        ({"name": "os@system"}, r"no module models\.os"),
        ({"name": "hrm.hrm_act_v1@mx"}, r"defines no mx"),
        ({"name": "hrm.hrm_act_v1@BaseModel"}, r"defines no BaseModel"),
        ({"name": "..utils.config@UserError"}, r"expected module@Name"),
        ({"name": "layers@Linear"}, r"'layers@Linear' is not a model"),
    ],
)
def test_impossible_architectures_are_one_line_that_names_the_key(arch: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train_state(pretrain_config(arch), sizes())
    assert "\n" not in str(caught.value)
