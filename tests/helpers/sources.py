"""Sources and data sets made by hand: independent of the project's own writers, so that both sides are checked.

Only the mazes come from the project's generator, whose answers its own test checks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dataset.build_mini_maze_dataset import random_mazes

ROOT = Path(__file__).resolve().parents[2]
CSV_HEADER = "source,question,answer,rating"
MAZE_CHARACTERS = "# SGo"


def sudoku_rows(n: int, *, seed: int = 0, blanks: int = 45) -> list[tuple[str, str, int]]:
    """n valid (question, answer, rating): shuffled copies of the cyclic grid, with ratings 0, 1, 2, …"""
    rng = np.random.default_rng(seed)
    rows = []
    for rating in range(n):
        lines = [np.concatenate([3 * band + rng.permutation(3) for band in rng.permutation(3)]) for _ in range(2)]
        digits = rng.permutation(9) + 1
        grid = [digits[(3 * r + r // 3 + c) % 9] for r in lines[0] for c in lines[1]]
        blank = set(rng.permutation(81)[:blanks].tolist())
        question = "".join("." if i in blank else str(d) for i, d in enumerate(grid))
        rows.append((question, "".join(map(str, grid)), rating))
    return rows


def maze_rows(n: int, seed: int) -> list[Any]:
    """n (question, answer, rating) of 30x30 mazes."""
    texts = [
        ["".join(MAZE_CHARACTERS[value] for value in board.ravel()) for board in boards]
        for boards in random_mazes(np.random.default_rng(seed), 20 * n, 30, 40)
    ]
    return list(zip(*texts, range(n), strict=False))


def write_csv(path: Path, rows: Sequence[tuple[str, str, int]]) -> None:
    path.write_text("\n".join([CSV_HEADER, *(f"made,{q},{a},{r}" for q, a, r in rows)]) + "\n")


def make_source(folder: Path, train: int = 12, test: int = 7) -> Path:
    """A source folder with `train` and `test` puzzles."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "train.csv", sudoku_rows(train, seed=1))
    write_csv(folder / "test.csv", sudoku_rows(test, seed=2))
    return folder


def write_split(
    folder: Path,
    groups: Sequence[Sequence[int]],
    *,
    set_names: Sequence[str] = ("all",),
    seq_len: int = 4,
    dtype: Any = np.uint8,
    ignore_label_id: int | None = 0,
    **metadata: Any,
) -> Path:
    """A split by hand. `groups[g][p]` is the number of examples of puzzle p of group g, the same in every set.

    Example e of a set spells e in its input, in base 50 with digits 1 to 50; its label is its input, but with the first
    token ignored (0). Puzzle p has identifier p + 1.
    """
    folder.mkdir(parents=True)
    sizes = [size for group in groups for size in group]
    examples = np.arange(sum(sizes))
    inputs = np.stack([examples // 50**k % 50 + 1 for k in range(seq_len)], axis=1)
    labels = inputs.copy()
    labels[:, 0] = 0 if ignore_label_id is None else ignore_label_id
    for name in set_names:
        np.save(folder / f"{name}__inputs.npy", inputs.astype(dtype))
        np.save(folder / f"{name}__labels.npy", labels.astype(dtype))
        np.save(folder / f"{name}__puzzle_identifiers.npy", np.arange(1, len(sizes) + 1, dtype=np.int32))
        np.save(folder / f"{name}__puzzle_indices.npy", np.cumsum([0, *sizes]).astype(np.int32))
        np.save(folder / f"{name}__group_indices.npy", np.cumsum([0, *map(len, groups)]).astype(np.int32))
    values = {
        "pad_id": 7,
        "ignore_label_id": ignore_label_id,
        "blank_identifier_id": 0,
        "vocab_size": 100,
        "seq_len": seq_len,
        "num_puzzle_identifiers": len(sizes) + 1,
        "total_groups": len(groups) * len(set_names),
        "mean_puzzle_examples": sum(sizes) / len(sizes),
        "sets": list(set_names),
        **metadata,
    }
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder


def example_numbers(inputs: np.ndarray) -> list[int]:
    """The inverse of how `write_split` spells examples."""
    return ((inputs - 1) @ 50 ** np.arange(inputs.shape[1])).tolist()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run_script(command: str, cwd: Path, *, terminal: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a `python dataset/…` line as a user types it, in a working folder that sees the repository's `dataset/`.

    With `terminal`, stderr is one.
    """
    if not (cwd / "dataset").exists():
        (cwd / "dataset").symlink_to(ROOT / "dataset")
    words = command.split()
    assert words[0] == "python"
    arguments, env = [sys.executable, *words[1:]], {**os.environ, **env}
    if not terminal:
        return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # rows and columns
    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(_read_terminal, ours)  # meanwhile, because a terminal holds only a few kB
        try:
            done = subprocess.run(
                arguments, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=120
            )
        finally:
            os.close(theirs)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, shown.result())


def _read_terminal(descriptor: int) -> str:
    """Read all that the other end of a terminal shows, until it is closed."""
    parts = []
    with contextlib.suppress(OSError):  # how Linux reports the end
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    os.close(descriptor)
    return b"".join(parts).decode()


def assert_one_line_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit status 1, and beside progress bars one line on stderr, with these parts in it."""
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line and "%|" not in line]
    assert result.returncode == 1, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
