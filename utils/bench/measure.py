"""Measurements of a step on this machine: time, memory, its matmuls alone, and the share of Python around it."""

from __future__ import annotations

import utils.linux_cpu  # before mlx: on Linux it brings a fast BLAS

import contextlib
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from hydra import compose, initialize_config_dir

from common.errors import UserError
from dataset.prefetch import prefetch
from dataset.puzzle_dataset import PuzzleDataset
from dataset.writer import DatasetWriter
from models.kernels.streams import cpu_streams, on_gpu
from utils.bench.products import Product, ProductTimer, Seconds, least, matmuls, seconds, total
from utils.config import PretrainConfig, parse_pretrain_config, with_names
from utils.evaluation.evaluate import Evaluator, make_eval_step
from utils.hydra_config import hydra_errors, plain_values
from utils.model import with_forward_dtype
from utils.ranks.ranks import Ranks
from utils.tracking import Tracker
from utils.train.history import History
from utils.train.metrics import TrainMetrics
from utils.train.state import TrainState, to_device
from utils.train.step import make_train_step

SHAPES = {  # seq_len, vocab_size, rows of a batch
    "sudoku": (81, 11, 16),
    "maze": (900, 6, 2),
    "sudoku-6x6": (36, 8, 32),  # the demo's
    "maze-12x12": (144, 6, 32),
}
_ROOT = Path(__file__).resolve().parents[2]
_GIGA, _MIB = 1e9, 2**20


def check_arch(arch: str) -> None:
    """Check that `arch` is a file of config/arch.

    Raises:
        UserError: if there is no such file; the message lists those there are.
    """
    names = sorted(path.stem for path in (_ROOT / "config" / "arch").glob("*.yaml"))
    if arch not in names:
        raise UserError(f"arch={arch}: there is no config/arch/{arch}.yaml; choose one of {', '.join(names)}")


def check_shapes(names: list[str]) -> None:
    """Check that all are of SHAPES.

    Raises:
        UserError: if one is not; the message lists those there are.
    """
    for name in names:
        if name not in SHAPES:
            raise UserError(f"shapes={name}: there is no such shape; choose of {', '.join(SHAPES)}")


def bench_config(arch: str, batch: int) -> PretrainConfig:
    """Compose the default configuration of pretrain.py, with a file of config/arch and `batch` rows a step."""
    values = {"arch": arch, "global_batch_size": batch, "data_path": "data/bench", "eval_interval": "null", "epochs": 1}
    overrides = [f"{key}={value}" for key, value in values.items()]
    with hydra_errors(), initialize_config_dir(str(_ROOT / "config"), version_base=None):
        composed = compose("cfg_pretrain", overrides)
    return with_forward_dtype(with_names(parse_pretrain_config(plain_values(composed))))


def make_data(folder: Path, seq_len: int, vocab_size: int, puzzles: int) -> None:
    """Write a data set of random tokens, one example a puzzle."""
    rng, ones = np.random.default_rng(0), np.ones(puzzles, np.int32)
    with DatasetWriter(folder, seq_len=seq_len, vocab_size=vocab_size) as writer:
        for split in ("train", "test"):
            inputs, labels = (rng.integers(1, vocab_size, (puzzles, seq_len), np.uint8) for _ in range(2))
            identifiers = np.zeros(puzzles, np.int32)
            writer.add(
                split,
                inputs,
                labels,
                puzzle_identifiers=identifiers,
                examples_per_puzzle=ones,
                puzzles_per_group=ones,
            )


def state_and_batch(config: PretrainConfig, name: str) -> tuple[TrainState, dict[str, mx.array]]:
    """Make the state of a run on one of SHAPES, and a batch of it."""
    seq_len, vocab_size, batch_size = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder, "data"), seq_len, vocab_size, batch_size)
        data = PuzzleDataset(Path(folder, "data"), "train", global_batch_size=batch_size)
        batch = to_device(next(data.train_batches(0, epochs=1)))
    state = TrainState(config, data.metadata, total_steps=10_000)
    mx.eval(state.arrays, batch)
    return state, batch


def first_step(arch: str, name: str) -> float:
    """Measure the first training step of this process, in seconds: building the graph, compiling it, and the step."""
    state, batch = state_and_batch(bench_config(arch, SHAPES[name][2]), name)
    return seconds(lambda: (state.train_step(batch), state.carry, state.arrays)).wall


def first_step_without_kernels(arch: str, name: str) -> float:
    """Measure `first_step` in a process of its own, without kernels that an earlier one has compiled."""
    code = "import sys; from utils.bench.measure import first_step; print(first_step(*sys.argv[1:]))"
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            [sys.executable, "-c", code, arch, name],
            env=os.environ | {"TMPDIR": folder},
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    if found.returncode != 0:
        raise UserError(f"the first step failed in a process of its own: {found.stderr.strip()[-200:]}")
    return float(found.stdout)


def step_products(state: TrainState, batch: dict[str, mx.array]) -> dict[str, Counter[Product]]:
    """Count the matmuls of a training step and of an evaluation step in their graphs.

    Args:
        state: can't be used afterwards: tracing leaves tracers in its modules.
        batch: int32 arrays `inputs` `[b, s]`, `labels` `[b, s]`, `puzzle_identifiers` `[b]`.

    Returns:
        The counts of `train` and `eval`.

    Raises:
        UserError: if MLX can't export one of the graphs.
    """
    carry = state.head.model.initial_carry(batch)
    step = make_train_step(state.head, state.optimizer, state.random, state.ema, state.config, Ranks())

    def train(*arguments: Any) -> Any:
        return step(*arguments), state.arrays

    scalars = mx.zeros(()), mx.zeros(()), mx.zeros(())  # both rates and the signal
    try:
        evaluation = matmuls(make_eval_step(state.head), carry, batch)
        return {"train": matmuls(train, carry, batch, *scalars), "eval": evaluation}
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the matmuls of {state.config.arch.name} can't be counted, because MLX can't export its graph: {error}"
        ) from error


@contextlib.contextmanager
def _wandb_offline(folder: str) -> Iterator[None]:
    """Let W&B record in `folder` within the block, offline and without output, whatever its environment."""
    wanted = {"WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_SILENT": "true"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def host_share(state: TrainState, seq_len: int, vocab_size: int, steps: int) -> dict[str, float]:
    """Measure the shares of the training loop's time in which nothing is computed.

    The loop is that of pretrain.py with log_interval = 1 and W&B offline. Python's work while the device computes is
    not counted.

    Returns:
        The shares of `loader`, `python` and `logging`, from 0 to 1.
    """
    spent = dict.fromkeys(("loader", "python", "logging"), 0.0)
    config, batch = state.config, state.config.global_batch_size
    with tempfile.TemporaryDirectory() as folder, _wandb_offline(folder):
        make_data(Path(folder, "data"), seq_len, vocab_size, steps * batch)
        data = PuzzleDataset(Path(folder, "data"), "train", global_batch_size=batch)
        metrics = TrainMetrics(batch, 100)
        with (
            History(Path(folder)) as history,
            Tracker(config, None, history) as tracker,
            prefetch(data.train_batches(0, epochs=1)) as batches,
        ):
            started = last = time.perf_counter()

            def lap(name: str | None) -> None:
                nonlocal last
                now = time.perf_counter()
                if name is not None:
                    spent[name] += now - last
                last = now

            for example in batches:
                lap("loader")
                result = state.train_step(to_device(example))
                lap("python")
                mx.eval(state.arrays, state.carry, result)
                lap(None)
                metrics.add(state.step, result.metrics, result.finite)
                tracker.log(metrics.read() | {"train/lr": state.learning_rates(state.step)[0]}, state.step)
                lap("logging")
            whole = time.perf_counter() - started
    return {name: value / whole for name, value in spent.items()}


def measure(arch: str, name: str, rounds: int) -> dict[str, Any]:
    """Measure all numbers of the table for one of SHAPES.

    Args:
        arch: a file of config/arch.
        name: of SHAPES.
        rounds: how many.

    Returns:
        The numbers by name, in seconds and MiB, in JSON's types.
    """
    seq_len, vocab_size, batch = SHAPES[name]
    config = bench_config(arch, batch)
    products = step_products(*state_and_batch(config, name))
    state, data = state_and_batch(config, name)
    evaluator = Evaluator(state.head)
    carry = state.head.model.initial_carry(data)

    def train() -> Any:
        return state.train_step(data), state.carry, state.arrays

    def evaluate() -> Any:
        return evaluator.step(carry, data)

    seconds(train)
    mx.reset_peak_memory()
    seconds(train)
    record: dict[str, Any] = {
        "batch": batch,
        "seq_len": seq_len,
        "dtype": config.arch.options()["forward_dtype"],
        "peak_memory_mb": mx.get_peak_memory() / _MIB,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / _MIB,
    }
    seconds(evaluate)
    timer = ProductTimer(list(products["train"] | products["eval"]))
    times: dict[str, list[Seconds]] = {kind: [] for kind in products}
    alone: list[dict[Product, Seconds]] = []
    for _ in range(rounds):
        alone.append(timer.measure())
        times["train"].append(seconds(train))
        times["eval"].append(seconds(evaluate))
    best = {product: least([found[product] for found in alone]) for product in alone[0]}
    for kind, counts in products.items():
        record[f"{kind}_flops"] = sum(p.flops * count for p, count in counts.items())
        bound = total([best[p] * count for p, count in counts.items()])
        for what, found in (("bound", bound), ("step", least(times[kind]))):
            record[f"{kind}_{what}"], record[f"{kind}_{what}_cpu"] = found
    record["products"] = [
        {
            "shape": [p.batch, p.m, p.k, p.n],
            "layout": p.layout,
            "dtype": str(p.dtype).rpartition(".")[2],
            "count": count,
            "gflop_per_s": p.flops / best[p].wall / _GIGA,
        }
        for p, count in sorted(products["train"].items(), key=lambda item: -item[0].flops * item[1])
    ]
    record["host"] = host_share(state, seq_len, vocab_size, steps=rounds)
    return record


def machine() -> dict[str, Any]:
    """Describe the machine of a record, with the date and the load."""
    return {
        "date": date.today().isoformat(),
        "device": "gpu" if on_gpu() else "cpu",
        "name": str(mx.device_info().get("device_name", platform.processor() or platform.machine())),
        "system": f"{platform.system()} {platform.machine()}",
        "mlx": version("mlx"),
        "blas": utils.linux_cpu.blas_name,
        "streams": 1 if on_gpu() else len(cpu_streams()),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }
