"""The device that MLX has, against the CPU and the reference values. `make test-gpu` runs it in full, for a report.

Without a GPU its forms run on the CPU instead, so that this file is known to work; in `make test` quickly.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from dataset.puzzle_dataset import PuzzleDataset
from models.kernels import device_kind, fused, on_gpu, plain_forms
from tests.helpers.configs import (
    DEFAULT_ARCH,
    TINY_ARCH,
    bits_of,
    pretrain_config,
    random_batch,
    sizes,
    train_state,
)
from tests.helpers.device_report import FULL, REPORT, DeviceReport
from tests.helpers.golden import FOLDERS, OUTPUTS, TOLERANCES, absent, batch_of, load, set_weights
from tests.helpers.tiny_data import make_tiny_data
from utils.bench import measure
from utils.checkpoints.safetensors_file import read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.weights import load_weights
from utils.config import PretrainConfig
from utils.evaluation.evaluate import Evaluator, evaluate
from utils.train.state import TrainState

pytestmark = pytest.mark.gpu

HEADS_OF_64 = TINY_ARCH | {"hidden_size": 128, "num_heads": 2, "puzzle_emb_ndim": 128}  # as Metal's kernel wants them
STEPS = 50
MIB = 2**20


@pytest.fixture(scope="module")
def report() -> DeviceReport:
    return DeviceReport(Path(REPORT) if REPORT else None)


@contextlib.contextmanager
def on_the_device() -> Iterator[None]:
    """Compute as the GPU does; where there is none, in its forms on the CPU."""
    with contextlib.nullcontext() if on_gpu() else plain_forms():
        yield


@contextlib.contextmanager
def on_the_cpu() -> Iterator[None]:
    """Compute on the CPU, in its own forms."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(before)


def largest_difference(found: mx.array, expected: np.ndarray) -> float:
    return float(np.abs(np.array(found.astype(mx.float32), np.float64) - expected).max())


def largest_error(found: mx.array, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    return largest_difference(found, expected) / float(np.abs(expected).max())


@pytest.mark.parametrize("forward_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_golden_values(report: DeviceReport, folder: Path, forward_dtype: str) -> None:
    """The first step of training and the evaluation: a wrong kernel gives another model than the published one.

    In float32 as near as on the CPU. In bfloat16 the logits, relative to the largest, may be off by 5 % after a step
    and by 15 % after those of an evaluation, three times what is found on a CPU at most.
    """
    with report.check(f"golden {folder.name} {forward_dtype}") as numbers, on_the_device():
        golden, state = load(folder, {"forward_dtype": forward_dtype})
        set_weights(state, golden, "init/")
        metrics, outputs, finite, _ = state.train_step(batch_of(golden, "train/1"))
        numbers["loss"] = abs(metrics["loss"].item() / float(golden["train/1/loss"]) - 1)
        for name in sorted(set(OUTPUTS) - absent(golden)):
            numbers[name] = largest_difference(outputs[name], golden[f"train/1/{name}"])
        gradients = dict(tree_flatten(outputs["gradients"][0]))
        names = [name.removeprefix("train/1/grad/") for name in golden if name.startswith("train/1/grad/")]
        numbers["gradient"] = max(
            largest_error(gradients[name], golden[f"train/1/grad/{name}"]) for name in names if name in gradients
        )
        set_weights(state, golden, "ema/" if state.config.ema else "final/")
        *_, (_, _, outputs) = Evaluator(state.head).outer_steps(batch_of(golden, "eval"))
        numbers["eval_logits"] = largest_difference(outputs["logits"], golden["eval/logits"])
        agreement = np.array(outputs["preds"]) == golden["eval/logits"].argmax(-1)
        numbers["eval_preds_equal"] = float(agreement.mean())

        assert finite.item()
        if forward_dtype == "float32":
            tolerance = TOLERANCES[folder.name]
            assert numbers["gradient"] <= tolerance.gradient
            assert max(numbers[name] for name in set(OUTPUTS) - absent(golden)) <= tolerance.outputs
            assert numbers["eval_logits"] <= tolerance.outputs
            assert agreement.all()
        else:
            assert numbers["logits"] <= 0.05 * np.abs(golden["train/1/logits"]).max()
            assert numbers["eval_logits"] <= 0.15 * np.abs(golden["eval/logits"]).max()


def curve_config(forward_dtype: str) -> PretrainConfig:
    return pretrain_config(HEADS_OF_64 | {"halt_exploration_prob": 0.0, "forward_dtype": forward_dtype}, lr=5e-4)


def losses(state: TrainState, weights: dict[str, mx.array]) -> np.ndarray:
    """The losses of STEPS steps from these weights, on four batches, again and again."""
    state.head.load_weights(list(weights.items()))
    values = [state.train_step(random_batch(step % 4)).metrics["lm_loss"] for step in range(STEPS)]
    return np.array(mx.stack(values))


@pytest.mark.parametrize(("forward_dtype", "largest", "mean"), [("float32", 0.01, 0.002), ("bfloat16", 0.05, 0.01)])
def test_training_follows_the_curve_of_the_cpu(
    report: DeviceReport, forward_dtype: str, largest: float, mean: float
) -> None:
    """In float32, within 1 % of the first loss at every step and 0.2 % on average; 5 % and 1 % in bfloat16."""
    with report.check(f"{STEPS} steps {forward_dtype}") as numbers:
        with on_the_cpu():
            state = train_state(curve_config("float32"))
            weights = dict(tree_flatten(state.head.parameters()))
            expected = losses(state, weights)
        with on_the_device():
            found = losses(train_state(curve_config(forward_dtype)), weights)
        numbers["cpu"], numbers["device"] = expected[::7].tolist(), found[::7].tolist()
        difference = np.abs(found - expected) / expected[0]
        numbers["largest_difference"], numbers["mean_difference"] = float(difference.max()), float(difference.mean())
        assert expected[-4:].mean() < expected[:4].mean() * 3 / 4
        assert numbers["largest_difference"] < largest
        assert numbers["mean_difference"] < mean


def test_a_run_is_resumed_twice_with_the_same_end(report: DeviceReport, tmp_path: Path) -> None:
    """Bit for bit on a CPU. A GPU adds the gradients of equal tokens in no fixed order: there the losses may differ by
    a ten thousandth."""
    config = pretrain_config(HEADS_OF_64)

    def ten_steps(start: int) -> tuple[TrainState, Any]:
        state = train_state(config)
        if start:
            load_weights(state.head, read_safetensors(tmp_path / "weights"), "here")
            state.restore(start, read_safetensors(tmp_path / "training"), "here")
        for step in range(start, 10):
            loss = state.train_step(random_batch(step)).metrics["lm_loss"].item()
            if step == 4 and not start:
                for name, arrays in (("weights", state.weights()), ("training", state.named_arrays())):
                    tensors = {key: host_tensor(array) for key, array in arrays.items()}
                    write_safetensors(tmp_path / name, tensors)
        return state, loss

    with report.check("resume") as numbers, on_the_device():
        states, ends = zip(*(ten_steps(start) for start in (0, 5, 5)), strict=True)
        whole, first, second = (bits_of(state) for state in states)
        numbers["same_bits_as_without"], numbers["same_bits_twice"] = first == whole, second == first
        numbers["loss_difference"] = float(np.abs(np.array(ends) / ends[0] - 1).max())
        numbers["differ"] = sorted(name for name in whole if not whole[name] == first[name] == second[name])[:8]
        assert numbers["loss_difference"] <= 1e-4
        assert on_gpu() or first == second == whole


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [82, 901] if FULL else [82])
@pytest.mark.parametrize("head_size", [32, 64, 128])
def test_attention_agrees_with_its_scores(report: DeviceReport, head_size: int, tokens: int, dtype: Any) -> None:
    """Forward and backward, against scores and softmax in float32 on the CPU; time and memory beside theirs."""
    shape = (2, 512 // head_size, tokens, head_size)
    scale = 1 / math.sqrt(head_size)
    with on_the_cpu():
        arrays = [mx.random.normal(shape, key=mx.random.key(i)).astype(dtype).astype(mx.float32) for i in range(4)]
        mx.eval(arrays)

    def both(attention: Callable[..., mx.array], dtype: Any) -> Callable[[], list[mx.array]]:
        q, k, v, cotangent = (array.astype(dtype) for array in arrays)
        mx.eval(q, k, v, cotangent)

        def loss(*qkv: mx.array) -> tuple[mx.array, mx.array]:
            out = attention(*qkv)
            return (out * cotangent).astype(mx.float32).sum(), out

        step = mx.compile(mx.value_and_grad(loss, (0, 1, 2)))

        def run() -> list[mx.array]:
            (_, out), gradients = step(q, k, v)
            mx.eval(out, gradients)
            return [out, *gradients]

        return run

    def by_scores(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return fused.attention(q, k, v, scale, "scores")

    def by_form(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return fused.attention(q, k, v, scale, fused.attention_form(device_kind(), head_size, tokens))

    with report.check(f"attention {head_size} {tokens} {str(dtype).rpartition('.')[2]}") as numbers:
        numbers["form"] = fused.attention_form(device_kind(), head_size, tokens)
        with on_the_cpu():
            expected = [np.array(array, np.float64) for array in both(by_scores, mx.float32)()]
        with on_the_device():
            for name, attention in (("scores", by_scores), ("form", by_form)):
                run = both(attention, dtype)
                run()
                before = mx.get_active_memory()
                mx.reset_peak_memory()
                found = run()
                numbers[f"{name}_peak_mib"] = (mx.get_peak_memory() - before) / MIB
                numbers[f"{name}_seconds"] = min(timed(run) for _ in range(5))
        for name, ours, reference in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
            numbers[name] = largest_error(ours, reference)
        tolerance = 1e-5 if dtype == mx.float32 else 0.03
        assert max(numbers[name] for name in ("out", "dq", "dk", "dv")) <= tolerance


def timed(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def test_evaluation_agrees_with_that_of_the_cpu(report: DeviceReport, tmp_path: Path) -> None:
    """All steps for all rows, and rows that halt by Q in slots: a Mac would report another accuracy than a server."""
    data = PuzzleDataset(make_tiny_data(tmp_path / "data"), "test", global_batch_size=8)
    config = pretrain_config(HEADS_OF_64)
    with on_the_cpu():
        state = train_state(config, data.metadata)
        q_head = state.head.model.inner.q_head
        q_head.weight = mx.random.normal(q_head.weight.shape, key=mx.random.key(0))  # zero, all rows halt together
        q_head.bias = mx.zeros_like(q_head.bias)
        weights = dict(tree_flatten(state.head.parameters()))
        mx.eval(weights)

    def metrics(halt: Any) -> dict[str, float]:
        state = train_state(config, data.metadata)
        state.head.load_weights(list(weights.items()))
        return evaluate(Evaluator(state.head, halt), data).metrics

    with report.check("evaluation") as numbers:
        for halt in ("max", "q"):
            with on_the_cpu():
                expected = metrics(halt)
            with on_the_device():
                found = metrics(halt)
            numbers[halt] = {name: [value, expected[name]] for name, value in found.items()}
            assert found == pytest.approx(expected, rel=0.01, abs=0.01)


@pytest.mark.parametrize("name", ["sudoku", "maze"] if FULL else ["sudoku"])
def test_slices_need_less_memory(report: DeviceReport, name: str) -> None:
    """A step in slices that took as much as a whole one would not bring ARC onto a Mac."""
    seq_len, vocab_size, rows = measure.SHAPES[name]
    rows *= 2
    arch = DEFAULT_ARCH if FULL and on_gpu() else HEADS_OF_64
    with report.check(f"peak memory {name}") as numbers, on_the_device():
        numbers["arch"] = {key: arch[key] for key in ("hidden_size", "num_heads", "H_layers", "H_cycles")}
        for slice_rows in (rows, rows // 4):
            config = pretrain_config(arch, global_batch_size=rows)
            state = train_state(config, sizes(seq_len, vocab_size), micro_batch_size=slice_rows)
            for step in range(2):
                data = random_batch(step, batch=rows, seq_len=seq_len, vocab_size=vocab_size)
                mx.eval(data, state.arrays)
                mx.reset_peak_memory()
                result = state.train_step(data)
                mx.eval(result.metrics, state.carry, state.arrays)
            numbers[f"{rows}_rows_{slice_rows}_at_once_mib"] = mx.get_peak_memory() / MIB
        whole, sliced = (numbers[f"{rows}_rows_{slice_rows}_at_once_mib"] for slice_rows in (rows, rows // 4))
        assert sliced < whole


@pytest.mark.skipif(not FULL, reason="takes minutes, in `make test-gpu`; tests/utils/bench tests the bench itself")
@pytest.mark.parametrize("name", ["sudoku", "maze"])
def test_bench(report: DeviceReport, name: str) -> None:
    """One round of what `make bench` measures: of the default model on a GPU, of a small one on a CPU."""
    arch = "hrm_v1" if on_gpu() else "hrm_demo"
    with report.check(f"bench {arch} {name}") as numbers:
        found = measure.measure(arch, name, rounds=1)
        numbers |= {key: value for key, value in found.items() if key != "products"}
        assert found["train_step"] > 0
