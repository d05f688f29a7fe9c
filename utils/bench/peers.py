"""Our steps beside those of the same model in PyTorch: `peers=` of the bench.

Ours and PyTorch's take turns, PyTorch in a process of its own (torch_peer.py), which waits meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import mlx.core as mx

from common.errors import UserError
from models.kernels.streams import on_gpu
from utils.bench import measure
from utils.bench.products import Seconds
from utils.config import PretrainConfig
from utils.evaluation.evaluate import Evaluator

KINDS = {"train": "training step", "eval": "evaluation step"}
_ROOT = Path(__file__).resolve().parents[2]
_COMMAND = [sys.executable, "-m", "utils.bench.torch_peer"]
# What torch_model.py has, which only its own process may import
_MODULES = ("hrm.hrm_act_v1", "recursive_reasoning.trm")
_LOSSES = ("stablemax_cross_entropy", "softmax_cross_entropy")
_LEAST_SECONDS = 0.5  # of a turn: shorter steps are repeated
_PAUSE = 0.1  # seconds between turns, in which the threads of the other's matmuls go to sleep


def check_torch() -> None:
    """Check that PyTorch is installed.

    Raises:
        UserError: if not; the message says how to install it.
    """
    if find_spec("torch") is None:
        raise UserError("peers= needs PyTorch, which is not installed: run `.venv/bin/python -m pip install torch`")


def _environment() -> dict[str, str]:
    """Return the environment without what `utils.linux_cpu` may have set for MLX and its BLAS."""
    ours = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MKL_THREADING_LAYER")
    return {name: value for name, value in os.environ.items() if name not in ours}


class TorchProcess:
    """A process that takes steps of the PyTorch model.

    Args:
        settings: what it is to build, as `torch_peer.main` reads it.

    Attributes:
        threads: how many PyTorch uses.

    Raises:
        UserError: if the process ends early.
    """

    def __init__(self, settings: dict[str, Any]):
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT, text=True, env=_environment()
        )
        try:
            self.threads: int = self._ask(settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TorchProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def seconds(self, kind: str, steps: int) -> Seconds:
        """Take so many steps of `train` or `eval`; returns the time of one."""
        return Seconds(*self._ask({"kind": kind, "steps": steps})) * (1 / steps)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError("the process of PyTorch has ended; its last lines are above")
        return json.loads(answer)


class OurSteps:
    """Steps of our model, as pretrain.py and evaluate.py take them.

    Args:
        config: the configuration of the run.
        shape: of `measure.SHAPES`.

    Attributes:
        model_config: of the model: its keys in config/arch and the sizes of the data.
    """

    def __init__(self, config: PretrainConfig, shape: str):
        self._state, self._batch = measure.state_and_batch(config, shape)
        self.model_config: dict[str, Any] = self._state.head.model.config.model_dump()
        self._evaluator = Evaluator(self._state.head)
        self._carry = self._state.head.model.initial_carry(self._batch)

    def seconds(self, kind: str, steps: int) -> Seconds:
        """Take so many steps of `train` or `eval`; returns the time of one."""
        mx.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            if kind == "train":
                result: Any = (self._state.train_step(self._batch), self._state.carry, self._state.arrays)
            else:
                result = self._evaluator.step(self._carry, self._batch)
            mx.async_eval(result)
        mx.eval(result)
        return Seconds(time.perf_counter() - wall, time.process_time() - cpu) * (1 / steps)


def has_peer(config: PretrainConfig) -> bool:
    """Return whether there is a PyTorch model like that of a configuration."""
    known = config.arch.name.partition("@")[0] in _MODULES and config.arch.loss.options().get("loss_type") in _LOSSES
    return known and config.arch.options().get("mixer") is None


def compare_with_torch(arch: str, shape: str, modes: list[str], rounds: int) -> dict[str, Any]:
    """Time our steps and PyTorch's in turns.

    Args:
        arch: a file of config/arch.
        shape: of `measure.SHAPES`.
        modes: of PyTorch, `eager` and `compile`.
        rounds: how many.

    Returns:
        For each mode `torch`, its version, `threads`, and for `train` and `eval` the wall and processor time of
        each round, `ours` and `theirs`, with `ratio`, the median of theirs divided by that of ours, and
        `ratio_cpu`, of processor time. With a model that there is no PyTorch model for only `none`, the reason.
    """
    config = measure.bench_config(arch, measure.SHAPES[shape][2])
    if not has_peer(config):
        return {"none": f"there is no PyTorch model to compare {config.arch.name} with"}
    ours = OurSteps(config, shape)
    settings = {
        "device": ("mps" if sys.platform == "darwin" else "cuda") if on_gpu() else "cpu",
        "module": config.arch.name.partition("@")[0],
        "loss_type": config.arch.loss.options()["loss_type"],
        "config": ours.model_config,
        "rows": config.global_batch_size,
        "betas": [config.beta1, config.beta2],
        **{key: getattr(config, key) for key in ("lr", "weight_decay", "puzzle_emb_lr", "puzzle_emb_weight_decay")},
    }
    found: dict[str, Any] = {}
    with ExitStack() as processes:
        sides: dict[str, OurSteps | TorchProcess] = {"ours": ours}
        for mode in modes:
            process = processes.enter_context(TorchProcess(settings | {"compiled": mode == "compile"}))
            sides[mode] = process
            found[mode] = {"torch": version("torch"), "threads": process.threads}
        for kind in KINDS:
            times = _turns(sides, kind, rounds)
            for mode in modes:
                found[mode][kind] = {"ours": times["ours"], "theirs": times[mode]} | _ratios(times["ours"], times[mode])
    return found


def _ratios(ours: list[Seconds], theirs: list[Seconds]) -> dict[str, float]:
    wall = median(time.wall for time in theirs) / median(time.wall for time in ours)
    cpu = median(time.cpu for time in theirs) / median(time.cpu for time in ours)
    return {"ratio": wall, "ratio_cpu": cpu}


def _turns(sides: Mapping[str, OurSteps | TorchProcess], kind: str, rounds: int) -> dict[str, list[Seconds]]:
    """Let each side take its turn in every round; the first two steps of each, which compile, don't count."""
    steps = {}
    for name, side in sides.items():
        side.seconds(kind, 2)
        steps[name] = 1 + int(_LEAST_SECONDS / side.seconds(kind, 1).wall)
    times: dict[str, list[Seconds]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(_PAUSE)
            times[name].append(side.seconds(kind, steps[name]))
    return times


def report(found: dict[str, Any]) -> list[str]:
    """Format the lines of what `compare_with_torch` found."""
    if "none" in found:
        return [f"  {'PyTorch':<16} {found['none']}"]
    lines = []
    for mode, of_mode in found.items():
        lines.append(f"  beside PyTorch {of_mode['torch']}, {mode}, threads: {of_mode['threads']}")
        for kind, title in KINDS.items():
            times = of_mode[kind]
            ours, theirs = (median(wall for wall, _ in times[side]) * 1e3 for side in ("ours", "theirs"))
            line = f"    {title:<16} {ours:7.1f} ms, PyTorch {theirs:.1f} ms: {times['ratio']:.2f} × as fast"
            if not on_gpu():
                line += f"; in processor time {times['ratio_cpu']:.2f} ×"
            lines.append(line)
    return lines
