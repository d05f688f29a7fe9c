"""The bench says how far from the machine's limit a step is: the limit must be counted right, the rest be reported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from models import optimizers
from models.kernels import cpu as activations
from tests.helpers.configs import TINY_ARCH, pretrain_config, random_batch, train_state
from utils.bench import __main__ as bench
from utils.bench.products import step_products
from utils.evaluation.evaluate import Evaluator

STEPS = ("train", "eval")


def flops_of_graph(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of all matrix products in the graph that `function` builds."""
    found = []

    def visit(node: dict[str, Any]) -> None:
        if node["type"] == "primitive" and node["name"] in ("Matmul", "AddMM"):
            (*batch, m, k), (*_, n) = (shape for _, shape, _ in node["inputs"][:2])
            found.append(2 * math.prod(batch) * m * k * n)

    names, arrays = zip(*tree_flatten(arguments), strict=True)

    def on_arrays(*arrays: mx.array) -> list[mx.array]:
        results = function(*tree_unflatten(list(zip(names, arrays, strict=True))))
        return [array for _, array in tree_flatten(results)]

    mx.export_function(visit, on_arrays, *arrays)
    return sum(found)


@pytest.mark.parametrize(
    "arch",
    [
        {"H_cycles": 2, "L_cycles": 2, "H_layers": 2, "L_layers": 1},
        {"H_cycles": 1, "L_cycles": 3, "H_layers": 1, "L_layers": 2, "puzzle_emb_ndim": 0, "pos_encodings": "learned"},
        {"halt_max_steps": 1},
    ],
)
def test_the_bound_counts_the_products_of_the_step(arch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that counts too much or too little would make the step look better or worse than it is."""
    # MLX exports no functions with derivatives of our own; its derivatives of the same products are as many.
    monkeypatch.setattr(activations, "_differentiable", lambda function, _, *arrays: function(*arrays))
    monkeypatch.setattr(activations, "_exp2", lambda x, _: mx.exp(x * math.log(2.0)))
    monkeypatch.setattr(optimizers, "on_gpu", lambda: True)
    state = train_state(pretrain_config(arch))
    mx.eval(state.arrays)
    batch = random_batch(0)
    carry, config = state.head.model.initial_carry(batch), state.head.model.config
    rates = mx.array(1e-3), mx.array(1e-2)

    def flops(training: bool) -> int:
        return sum(p.flops * p.count for p in step_products(config, 8, training=training))

    assert flops(False) == flops_of_graph(Evaluator(state.head).uncompiled_step, carry, batch)
    found = flops_of_graph(lambda *a: (state.uncompiled_step(*a), state.arrays), carry, batch, *rates)
    assert flops(True) == found


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default configuration, but for a model and batches that take milliseconds."""
    default_config = bench.default_config

    def tiny_config(batch: int) -> Any:
        config = default_config(batch)
        return config.model_copy(update={"arch": type(config.arch).model_validate(TINY_ARCH)})

    monkeypatch.setattr(bench, "default_config", tiny_config)
    monkeypatch.setattr(bench, "SHAPES", {"sudoku": (16, 6, 4), "maze": (25, 6, 2)})
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_prints_a_table_and_json_that_a_later_run_compares_with(
    tiny: None, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    """Nobody would notice a change that makes the step slower."""
    out = tmp_path / "before.json"
    status, printed, err = call_script(bench, "quick=true", f"out={out}")
    assert status == 0, err
    record = json.loads(out.read_text())
    assert json.loads(printed.splitlines()[-1]) == record
    shape = record["shapes"]["sudoku"]
    for kind in STEPS:
        assert shape[f"{kind}_step"] > shape[f"{kind}_bound"] > 0
        assert shape[f"{kind}_step_cpu"] > 0
    assert set(shape["parts"]) == {"attention", "SwiGLU", "norms", "loss", "optimiser", "target pass"}
    assert 0 < sum(shape["host"].values()) < 1
    assert shape["peak_rss_mb"] > shape["peak_memory_mb"] > 0
    assert all(product["gflop_per_s"] > 0 for product in shape["products"])
    for word in ("training step", "evaluation step", "peak memory", "loader", "attention", "GFLOP/s", "load average"):
        assert word in printed

    for kind in STEPS:
        shape[f"{kind}_step"] /= 1000  # a machine that was a thousand times faster
    out.write_text(json.dumps(record))
    status, printed, err = call_script(bench, "quick=true", f"against={out}")
    assert status == 0, err
    assert printed.count("SLOWER") == len(STEPS)


@pytest.mark.parametrize(
    "content",
    [
        *(None, "{", "[]", "{}"),
        '{"machine": {"date": "2026-11-24", "device": "cpu"}, "shapes": {}, "load_average": 0}',
        '{"machine": {"date": "2026-11-24", "device": "cpu"}, "shapes": {"sudoku": {}}, "load_average": 0}',
        '{"machine": null, "shapes": {"sudoku": {}}, "load_average": "x"}',
    ],
)
def test_a_file_that_is_no_record_is_refused_before_measuring(
    content: str | None, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    path = tmp_path / "before.json"
    if content is not None:
        path.write_text(content)
    status, out, err = call_script(bench, f"against={path}")
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert f"against={path}" in err


def test_the_default_configuration_is_that_of_the_command_line() -> None:
    """The bench would measure another model than users train."""
    config = bench.default_config(16)
    assert config.arch.model_dump()["hidden_size"] == 512
    assert (config.global_batch_size, config.beta2, config.lr_warmup_steps) == (16, 0.95, 2000)
