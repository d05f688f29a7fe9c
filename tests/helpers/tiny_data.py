"""Data sets of a few 4×4 Sudoku, and command lines that train on them in seconds."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from dataset.writer import DatasetWriter

ROOT = Path(__file__).resolve().parents[2]
NUM_TRAIN, NUM_TEST, BATCH = 64, 20, 8
RUN_FILES = {".lock", "all_config.yaml", "code", "metrics.jsonl", "step_8", "step_16"}  # of a run of train_arguments
TINY_ARCH = [
    "arch.hidden_size=32",
    "arch.num_heads=2",
    "arch.H_layers=1",
    "arch.L_layers=1",
    "arch.H_cycles=1",
    "arch.L_cycles=1",
    "arch.halt_max_steps=3",
    "arch.forward_dtype=float32",
]


def puzzles(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n puzzles of 4×4 with 6 blanks, as tokens: inputs and labels, uint8 `[n, 16]`."""
    rng = np.random.default_rng(seed)
    solved = [
        grid
        for rows in itertools.product(itertools.permutations((1, 2, 3, 4)), repeat=2)
        for grid in [np.array([*rows[0], *rows[1], *rows[0][2:], *rows[0][:2], *rows[1][2:], *rows[1][:2]])]
        if all(len(set(grid.reshape(4, 4)[:, c])) == 4 for c in range(4)) and set(rows[0][:2]) == set(rows[1][2:])
    ]
    labels = np.array([solved[i] for i in rng.integers(len(solved), size=n)]) + 1
    inputs = np.where(rng.random(labels.shape).argsort(axis=1) < 6, 1, labels)
    return inputs.astype(np.uint8), labels.astype(np.uint8)


def make_tiny_data(folder: Path, *, identifiers: int = 1) -> Path:
    """Write a data set of NUM_TRAIN and NUM_TEST puzzles; with several identifiers they are dealt out in turn."""
    with DatasetWriter(folder, seq_len=16, vocab_size=6) as writer:
        writer.identifiers.extend(f"puzzle-{i}" for i in range(1, identifiers))
        for split, n, seed in (("train", NUM_TRAIN, 0), ("test", NUM_TEST, 1)):
            ones = np.ones(n, np.int32)
            inputs, labels = puzzles(n, seed)
            ids = np.arange(n, dtype=np.int32) % identifiers
            writer.add(split, inputs, labels, puzzle_identifiers=ids, examples_per_puzzle=ones, puzzles_per_group=ones)
    return folder


def split_test_set(folder: Path) -> None:
    """Turn the test split's set `all` into two sets, `easy` and `hard`, of 8 and 12 examples."""
    test = folder / "test"
    for kind in ("inputs", "labels", "puzzle_identifiers"):
        array = np.load(test / f"all__{kind}.npy")
        np.save(test / f"easy__{kind}.npy", array[:8])
        np.save(test / f"hard__{kind}.npy", array[8:])
    for name, n in (("easy", 8), ("hard", 12)):
        for kind in ("puzzle_indices", "group_indices"):
            np.save(test / f"{name}__{kind}.npy", np.arange(n + 1, dtype=np.int32))
    metadata = json.loads((test / "dataset.json").read_text())
    (test / "dataset.json").write_text(json.dumps(metadata | {"sets": ["easy", "hard"]}))


def train_arguments(data: Path, checkpoint_path: Path, *overrides: str) -> list[str]:
    """Arguments of pretrain.py for two evaluations after 8 steps each."""
    return [
        f"data_path={data}",
        f"checkpoint_path={checkpoint_path}",
        f"global_batch_size={BATCH}",
        "epochs=2",
        "eval_interval=1",
        "lr=2e-3",
        "lr_warmup_steps=4",
        *TINY_ARCH,
        *overrides,
    ]


def run_script(
    script: str, arguments: list[str], folder: Path, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository as a user does, in `folder`, without a terminal.

    W&B is off unless `environment` says otherwise; None unsets a variable.
    """
    variables: dict[str, str | None] = {
        name: value for name, value in os.environ.items() if not name.startswith("WANDB")
    }
    variables |= {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"} | environment
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env={name: value for name, value in variables.items() if value is not None},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def finished_run(data: Path) -> Path:
    """Train on `data` for 16 steps, with a checkpoint every 4; the folder of the run, beside the data."""
    run = data.parent / "run"
    result = run_script("pretrain.py", train_arguments(data, run, "checkpoint_interval=4"), data.parent)
    assert result.returncode == 0, result.stderr
    return run
