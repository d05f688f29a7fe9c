"""How fast a training and an evaluation step are on this machine, and how fast they could be: python -m utils.bench

    python -m utils.bench [quick=true] [out=before.json] [against=before.json]

The bound is the time that the matrix products of a step would take alone, at the rate at which this machine does
products of these shapes. Every time is the least of several rounds, which take turns. On a CPU that others use as well
the clock says little, but the same ratio in processor time does: both are given. Prints a table and one line of JSON.
"""

from __future__ import annotations

import utils.linux_cpu  # before mlx: on Linux it brings a fast BLAS

import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict

from common import errors
from dataset.prefetch import prefetch
from dataset.puzzle_dataset import PuzzleDataset
from dataset.writer import DatasetWriter
from models.common import cpu_streams, on_gpu
from utils.bench.parts import PartTimer
from utils.bench.products import ProductTimer, Seconds, least, seconds, step_products, total
from utils.command_line import parse
from utils.config import PretrainConfig, parse_pretrain_config, with_names
from utils.evaluation.evaluate import Evaluator
from utils.tracking import Tracker
from utils.train.history import History
from utils.train.metrics import TrainMetrics
from utils.train.state import TrainState, to_device, with_forward_dtype

SHAPES = {"sudoku": (81, 11, 16), "maze": (900, 6, 2)}  # seq_len, vocab_size, rows of a batch
ROUNDS, QUICK_ROUNDS = 5, 2
NOTABLE = 5.0  # a step that is slower by more per cent is pointed out
_GIGA, _MIB = 1e9, 2**20


class BenchConfig(BaseModel):
    """All keys of `python -m utils.bench`.

    `quick`: Sudoku only, and every time measured twice. `out`: a file for the JSON line. `against`: such a file of an
    earlier run to compare with.
    """

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    quick: bool = False
    out: str | None = None
    against: str | None = None


def default_config(batch: int) -> PretrainConfig:
    """The default model and training, with `batch` rows a step."""
    folder = Path(__file__).resolve().parents[2] / "config"
    values: Any = OmegaConf.to_container(OmegaConf.load(folder / "cfg_pretrain.yaml"))
    del values["defaults"], values["hydra"]
    values["arch"] = OmegaConf.to_container(OmegaConf.load(folder / "arch" / "hrm_v1.yaml"), resolve=True)
    values |= {"global_batch_size": batch, "data_path": "data/bench", "eval_interval": None, "epochs": 1}
    return with_forward_dtype(with_names(parse_pretrain_config(values)))


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


def first_step(seq_len: int, vocab_size: int, batch: int) -> float:
    """Seconds of the first training step of this process: building the graph, compiling it, and the step itself."""
    state, data = _state_and_batch(default_config(batch), seq_len, vocab_size)
    return seconds(lambda: (state.train_step(data), state.carry, state.arrays)).wall


def _state_and_batch(config: PretrainConfig, seq_len: int, vocab_size: int) -> tuple[TrainState, dict[str, mx.array]]:
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder, "data"), seq_len, vocab_size, config.global_batch_size)
        data = PuzzleDataset(Path(folder, "data"), "train", global_batch_size=config.global_batch_size)
        batch = to_device(next(data.train_batches(0, epochs=1)))
    state = TrainState(config, data.metadata, total_steps=10_000)
    mx.eval(state.arrays, batch)
    return state, batch


def first_step_without_kernels(seq_len: int, vocab_size: int, batch: int) -> float:
    """`first_step` in a process of its own that finds no kernels compiled by an earlier one."""
    code = f"import utils.bench.__main__; print(utils.bench.__main__.first_step({seq_len}, {vocab_size}, {batch}))"
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"TMPDIR": folder},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    if found.returncode != 0:
        raise errors.UserError(f"the first step failed in a process of its own: {found.stderr.strip()[-200:]}")
    return float(found.stdout)


@contextlib.contextmanager
def _wandb_offline(folder: str) -> Iterator[None]:
    """Have W&B record in `folder`, whatever the environment says, and say nothing."""
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
    """Shares of the training loop's time in which nothing is computed: `loader`, `python` and `logging`.

    The loop is that of pretrain.py with log_interval = 1 and W&B offline. What Python does while the device is at work
    is not among them.
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
                results, _ = state.train_step(to_device(example))
                lap("python")
                mx.eval(state.arrays, state.carry, results)
                lap(None)
                metrics.add(state.step, results)
                tracker.log(metrics.read() | {"train/lr": state.learning_rates(state.step)[0]}, state.step)
                lap("logging")
            whole = time.perf_counter() - started
    return {name: value / whole for name, value in spent.items()}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Everything that the table says of one of SHAPES."""
    seq_len, vocab_size, batch = SHAPES[name]
    config = default_config(batch)
    state, data = _state_and_batch(config, seq_len, vocab_size)
    model = state.head.model
    evaluator = Evaluator(state.head)
    carry = model.initial_carry(data)

    def train() -> Any:
        return state.train_step(data), state.carry, state.arrays

    def evaluate() -> Any:
        return evaluator.step(carry, data)

    seconds(train)
    mx.reset_peak_memory()
    seconds(train)
    record: dict[str, Any] = {
        "batch": batch,
        "dtype": model.config.forward_dtype,
        "peak_memory_mb": mx.get_peak_memory() / _MIB,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / _MIB,
    }
    seconds(evaluate)
    products = {kind: step_products(model.config, batch, training=kind == "train") for kind in ("train", "eval")}
    timer = ProductTimer(products["train"], model.config.forward_dtype)
    times: dict[str, list[Seconds]] = {kind: [] for kind in products}
    alone: list[list[Seconds]] = []
    parts: list[dict[str, Seconds]] = []
    part_timer = PartTimer(state, data)
    for _ in range(rounds):
        alone.append(timer.measure())
        times["train"].append(seconds(train))
        times["eval"].append(seconds(evaluate))
        parts.append(part_timer.measure())
    best = {p.name: least(found) for p, found in zip(timer.products, zip(*alone, strict=True), strict=True)}
    for kind, kinds in products.items():
        record[f"{kind}_flops"] = sum(p.flops * p.count for p in kinds)
        for what, found in (("bound", total([best[p.name] * p.count for p in kinds])), ("step", least(times[kind]))):
            record[f"{kind}_{what}"], record[f"{kind}_{what}_cpu"] = found
    record["products"] = [
        {
            "name": p.name,
            "shape": [p.batch, p.m, p.k, p.n],
            "count": p.count,
            "gflop_per_s": p.flops / best[p.name].wall / _GIGA,
        }
        for p in timer.products
    ]
    record["parts"] = {part: least([found[part] for found in parts]) for part in parts[0]}
    record["host"] = host_share(state, seq_len, vocab_size, steps=rounds)
    return record


def machine() -> dict[str, Any]:
    """What a record was measured on, and when."""
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


def report(record: dict[str, Any]) -> str:
    """The table."""
    m = record["machine"]
    lines = [
        f"{m['name']} ({m['device']}, {m['cores']} cores, {m['streams']} streams), {m['system']}, mlx {m['mlx']}, "
        f"BLAS {m['blas']}, {m['date']}",
        f"load average {m['load_average']:.1f} at the start, {record['load_average']:.1f} at the end",
    ]
    for name, shape in record["shapes"].items():
        lines += ["", f"{name}: {shape['batch']} rows of {SHAPES[name][0]} tokens, {shape['dtype']}"]
        for kind, title in (("train", "training step"), ("eval", "evaluation step")):
            step, bound = shape[f"{kind}_step"], shape[f"{kind}_bound"]
            line = (
                f"  {title:<16} {step * 1e3:9.1f} ms = {step / bound:.2f} × the products' {bound * 1e3:.1f} ms "
                f"({shape[f'{kind}_flops'] / bound / _GIGA:.0f} GFLOP/s)"
            )
            if m["device"] == "cpu":
                line += f"; in processor time {shape[f'{kind}_step_cpu'] / shape[f'{kind}_bound_cpu']:.2f} ×"
            lines.append(line)
        if "first_step" in shape:
            lines.append(f"  {'first step':<16} {shape['first_step']:9.1f} s, nothing compiled before")
        lines.append(
            f"  {'peak memory':<16} {shape['peak_memory_mb']:9.0f} MB, the process so far {shape['peak_rss_mb']:.0f} MB"
        )
        host = shape["host"]
        shares = ", ".join(f"{part} {100 * share:.2f} %" for part, share in host.items())
        lines.append(f"  {'host':<16} {100 * sum(host.values()):9.2f} % of the training loop: {shares}")
        lines.append("  parts of the training step, each measured alone")
        of = "cpu" if m["device"] == "cpu" else "wall"
        whole = shape["train_step_cpu"] if of == "cpu" else shape["train_step"]
        parts = {part: spent[of == "cpu"] for part, spent in shape["parts"].items()}
        for part, spent in (parts | {"rest": whole - sum(parts.values())}).items():
            lines.append(f"    {part:<14} {spent * 1e3:9.1f} ms{' cpu' * (of == 'cpu')} {100 * spent / whole:6.1f} %")
        lines.append("  products")
        for product in shape["products"]:
            size, rate = " × ".join(map(str, product["shape"])), product["gflop_per_s"]
            lines.append(f"    {product['name']:<20} {size:>24} {product['count']:4d} times {rate:9.1f} GFLOP/s")
    return "\n".join(lines)


def compare(record: dict[str, Any], earlier: dict[str, Any]) -> str:
    """One line for each step that both records have: the change, pointed out where it is a notable loss."""
    lines = [f"compared with {earlier['machine']['date']}, load average {float(earlier['load_average']):.1f}:"]
    for name in (name for name in record["shapes"] if name in earlier["shapes"]):
        now, before = record["shapes"][name], earlier["shapes"][name]
        different = [f"{key} {before[key]} → {now[key]}" for key in ("dtype", "batch") if before[key] != now[key]]
        if record["machine"]["device"] != earlier["machine"]["device"]:
            different.append(f"device {earlier['machine']['device']} → {record['machine']['device']}")
        if different:
            lines.append(f"  {name}: not the same measurement, {', '.join(different)}")
        for kind, title in (("train", "training step"), ("eval", "evaluation step")):
            change, processor = (100 * (now[f"{kind}_{k}"] / before[f"{kind}_{k}"] - 1) for k in ("step", "step_cpu"))
            bounds = " → ".join(f"{shape[f'{kind}_step'] / shape[f'{kind}_bound']:.2f}" for shape in (before, now))
            lines.append(
                f"  {name}, {title}: {change:+.1f} % ({bounds} × the bound), processor time {processor:+.1f} %"
                + ("   SLOWER" if change > NOTABLE else "")
            )
    return "\n".join(lines)


def read_record(path: str) -> dict[str, Any]:
    """A file that `out=` wrote.

    Raises:
        UserError: if it is none.
    """
    try:
        record: dict[str, Any] = json.loads(Path(path).read_text())
        compare(record, record)
        if not record["shapes"]:
            raise ValueError("it has no shapes")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise errors.UserError(
            f"against={path} can't be compared with: {type(error).__name__}: {error}; expected what out= wrote"
        ) from error
    return record


@errors.one_line
def main() -> None:
    """Measure, print and compare as the command line says."""
    config = parse(sys.argv[1:], BenchConfig, "python -m utils.bench")
    earlier = read_record(config.against) if config.against is not None else None
    if config.out is not None and not Path(config.out).resolve().parent.is_dir():
        raise errors.UserError(f"out={config.out} can't be written: there is no such folder")
    record: dict[str, Any] = {"machine": machine(), "shapes": {}}
    for name in list(SHAPES)[: 1 if config.quick else None]:
        print(f"measuring {name} …", file=sys.stderr)
        shape = measure(name, QUICK_ROUNDS if config.quick else ROUNDS)
        record["shapes"][name] = shape
    if not config.quick:
        record["shapes"]["sudoku"]["first_step"] = first_step_without_kernels(*SHAPES["sudoku"])
    record["load_average"] = os.getloadavg()[0]
    print(report(record))
    if earlier is not None:
        print(compare(record, earlier))
    line = json.dumps(record)
    print(line)
    if config.out is not None:
        try:
            Path(config.out).write_text(line + "\n")
        except OSError as error:
            raise errors.UserError(f"out={config.out} can't be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
