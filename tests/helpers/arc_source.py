"""A small ARC made by hand: folders of JSON tasks, laid out as the real ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

RawTask = dict[str, list[dict[str, Any]]]


def random_task(seed: int, train: int = 3, test: int = 1, side: int = 6) -> RawTask:
    """A task of random grids up to `side` x `side`."""
    rng = np.random.default_rng(seed)

    def grid() -> list[list[int]]:
        return rng.integers(10, size=rng.integers(1, side + 1, 2)).tolist()

    return {
        kind: [{"input": grid(), "output": grid()} for _ in range(n)] for kind, n in (("train", train), ("test", test))
    }


def write_task(folder: Path, task_id: str, task: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task_id}.json"
    path.write_text(json.dumps(task))
    return path


def make_arc(folder: Path, training: int = 3, evaluation: int = 2, seed: int = 0) -> dict[str, RawTask]:
    """Write `training/t0.json`, … and `evaluation/e0.json`, …; returns the tasks. Numbers of pairs differ."""
    tasks = {}
    for subfolder, n in (("training", training), ("evaluation", evaluation)):
        for number in range(n):
            task_id = f"{subfolder[0]}{number}"
            task = random_task(1000 * seed + 100 * len(subfolder) + number, 2 + number % 3, 1 + number % 2)
            tasks[task_id] = task
            write_task(folder / subfolder, task_id, task)
    return tasks
