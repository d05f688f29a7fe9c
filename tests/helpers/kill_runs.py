"""Training runs as processes that are started, watched and killed: kill -9 again and again, until one is finished."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.tiny_data import ROOT

POLL_SECONDS = 0.0005


def start(
    arguments: list[str], folder: Path, *, largest_file: int | None = None, **environment: str
) -> subprocess.Popen[str]:
    """pretrain.py as a user starts it, in a process group of its own, with its output in a pipe.

    `largest_file`: bytes that a file may have, beyond which writing fails.
    """

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pretrain.py"), *arguments],
        cwd=folder,
        env=variables | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=limit,
    )


def lines_of(path: Path) -> int:
    """Lines of a file, 0 where there is none."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def wait_for_lines(process: subprocess.Popen[str], log: Path, lines: int) -> None:
    """Wait until the run has logged so many lines."""
    end = time.monotonic() + 240  # ends a hang; a first step compiles its kernels, on a busy machine for a minute
    while lines_of(log) < lines:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(POLL_SECONDS)


@dataclass
class Kills:
    """What was done to a run. `while_writing`: kills that left a half-written checkpoint behind."""

    total: int = 0
    while_writing: int = 0
    resumed_from: set[str] = field(default_factory=set)


def train_under_fire(
    arguments: list[str], checkpoint_path: Path, folder: Path, *, most: int, rng: random.Random, **environment: Any
) -> Kills:
    """Run to the end through kill -9 (`most` of them at most), at random moments of three kinds.

    While a checkpoint is being written; some lines after the run has begun to log; and at any time from its start.

    Raises:
        AssertionError: if the run ends in another way than by a kill or a success.
    """
    done = Kills()
    while True:
        process = start([*arguments, "resume=auto"], folder, **environment)
        killed = done.total < most and _kill_in_time(process, checkpoint_path, rng)
        output, _ = process.communicate(timeout=240)
        done.resumed_from |= {line for line in output.splitlines() if line.startswith("resuming")}
        if not killed:
            assert process.returncode == 0, output
            return done
        done.total += 1
        done.while_writing += any(checkpoint_path.glob(".step_*.partial"))


def _kill_in_time(process: subprocess.Popen[str], checkpoint_path: Path, rng: random.Random) -> bool:
    """Kill the process at a random moment; False if it had ended before."""
    kind = rng.choice(["writing", "logging", "any"])
    begin, log = time.monotonic(), checkpoint_path / "metrics.jsonl"
    lines, more, delay = lines_of(log), rng.randrange(0, 4), rng.random()
    while process.poll() is None:
        if kind == "any" and time.monotonic() - begin > 1.5 * delay:
            break
        if kind == "logging" and lines_of(log) > lines + more:
            time.sleep(0.02 * delay)
            break
        if kind == "writing" and any(checkpoint_path.glob(".step_*.partial")):
            time.sleep(0.004 * delay)
            break
        time.sleep(POLL_SECONDS)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL
