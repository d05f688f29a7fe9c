"""The bench compares what it measures with what it measured before, and refuses what it can't measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from common.errors import UserError
from tests.helpers.configs import pretrain_config, random_batch, train_state
from utils.bench import __main__ as bench
from utils.bench import measure

STEPS = ("train", "eval")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that take milliseconds."""
    monkeypatch.setattr(measure, "SHAPES", {"sudoku": (16, 6, 4), "maze": (25, 6, 2)})
    monkeypatch.setenv("WANDB_MODE", "disabled")


def test_prints_a_table_and_json_that_a_later_run_compares_with(
    tiny: None, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    """Nobody would notice a change that makes the step slower."""
    out = tmp_path / "before.json"
    status, printed, err = call_script(bench, "arch=hrm_demo", "quick=true", f"out={out}")
    assert status == 0, err
    record = json.loads(out.read_text())
    assert "{" not in printed, "the JSON is for out= alone"
    assert record["arch"] == "hrm_demo"
    shape = record["shapes"]["sudoku"]
    for kind in STEPS:
        assert shape[f"{kind}_step"] > shape[f"{kind}_bound"] > 0
        assert shape[f"{kind}_step_cpu"] > 0
        assert shape[f"{kind}_flops"] > 0
    assert 0 < sum(shape["host"].values()) < 1
    assert shape["peak_rss_mb"] > shape["peak_memory_mb"] > 0
    assert all(product["gflop_per_s"] > 0 for product in shape["products"])
    for word in ("training step", "evaluation step", "peak memory", "loader", "matmuls", "GFLOP/s", "load average"):
        assert word in printed

    for kind in STEPS:
        shape[f"{kind}_step"] /= 1000  # a machine that was a thousand times faster
    out.write_text(json.dumps(record))
    status, printed, err = call_script(bench, "arch=hrm_demo", "quick=true", f"against={out}")
    assert status == 0, err
    assert printed.count("SLOWER") == len(STEPS)
    assert "not the same measurement" not in printed


def test_compares_with_a_record_of_before_there_was_a_choice_of_architectures() -> None:
    """Nobody measures an old version again."""
    steps = {f"{kind}_{what}": 1.0 for kind in STEPS for what in ("step", "step_cpu", "bound")}
    shape = {"batch": 16, "dtype": "float32", **steps}
    rest = {"machine": {"date": "2026-11-24", "device": "cpu"}, "load_average": 0.3}
    earlier = rest | {"shapes": {"sudoku": shape | {"parts": {"attention": [0.5, 0.5]}}}}
    now = rest | {"arch": "hrm_v1", "shapes": {"sudoku": shape | {"train_step": 1.5}}}
    first, *lines = bench.compare(now, earlier).splitlines()
    assert "2026-11-24" in first
    assert [line.endswith("SLOWER") for line in lines] == [True, False]
    other = bench.compare(now | {"arch": "hrm_demo"}, earlier)
    assert "not the same measurement, arch hrm_v1 → hrm_demo" in other


def test_an_unknown_architecture_is_refused_before_measuring(call_script: Callable[..., Any]) -> None:
    """It would end in Hydra's account of its search path."""
    status, out, err = call_script(bench, "arch=hrm_v2")
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "arch=hrm_v2: there is no config/arch/hrm_v2.yaml; choose one of hrm_demo, hrm_v1, trm, " in err


def test_a_graph_that_mlx_cannot_export_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture with a derivative of its own would end the bench with a traceback."""
    state = train_state(pretrain_config())
    embed = state.head.model.inner.input_embeddings
    custom = mx.custom_function(lambda x: x)
    custom.vjp(lambda _, cotangent, __: cotangent)
    monkeypatch.setattr(state.head.model.inner, "input_embeddings", lambda *arguments: custom(embed(*arguments)))
    with pytest.raises(UserError, match=r"hrm_act_v1@\w+ can't be counted, because MLX can't export its graph"):
        measure.step_products(state, random_batch(0))


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


def test_the_configuration_is_that_of_the_command_line() -> None:
    """The bench would measure another model than users train."""
    config = measure.bench_config(bench.DEFAULT_ARCH, 16)
    assert config.arch.options()["hidden_size"] == 512
    assert (config.global_batch_size, config.beta2, config.lr_warmup_steps) == (16, 0.95, 2000)
    demo = measure.bench_config("hrm_demo", 4).arch.options()  # whose file builds upon another one
    assert (demo["hidden_size"], demo["rms_norm_eps"]) == (128, 1e-5)


@pytest.mark.slow
def test_the_first_step_is_timed_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would notice that a run takes long to start."""
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # whose time is not the test's affair
    assert measure.first_step_without_kernels("hrm_demo", "maze") > 0
    with pytest.raises(UserError, match=r"(?s)failed in a process of its own: .*KeyError: 'chess'"):
        measure.first_step_without_kernels("hrm_demo", "chess")
