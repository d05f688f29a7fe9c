"""Puzzles and models for evaluations that think longer, and what they have to find, computed one row at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import yaml
from mlx.utils import tree_flatten

import models
from dataset import mazes
from dataset.build_mini_maze_dataset import random_mazes
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import Batch, PuzzleDataset
from dataset.relabelling import relabeller
from dataset.writer import DatasetWriter
from models.losses import ACTLossHead
from models.variation import SAMPLE_KEY, vary
from tests.helpers.configs import pretrain_config, train_state
from tests.helpers.solvers import Elimination, Flood
from utils.checkpoints.safetensors_file import write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.evaluation.evaluate import Evaluation, Evaluator, evaluate
from utils.evaluation.predictions import PredictionWriter
from utils.evaluation.search import Search
from utils.evaluation.thinking import Thinking

MAX_STEPS = 5  # halt_max_steps of the solvers
SOLVERS = Path(__file__).parent  # the folder of their module
SAMPLE_FILES = ("sample_preds", "sample_q_halt_logits", "sample_movement", "sample_steps")
OUTPUTS = ("inputs", "labels", "preds", "logits", "q_halt_logits")


def write_dataset(folder: Path, inputs: np.ndarray, labels: np.ndarray, vocab_size: int, **keys: Any) -> Path:
    """Write tokens `[n, s]` as both splits of a data set."""
    with DatasetWriter(folder, seq_len=inputs.shape[1], vocab_size=vocab_size, **keys) as writer:
        for split in ("train", "test"):
            ones = np.ones(len(inputs), np.int32)
            ids = np.zeros(len(inputs), np.int32)
            tokens = (inputs.astype(np.uint8), labels.astype(np.uint8))
            writer.add(split, *tokens, puzzle_identifiers=ids, examples_per_puzzle=ones, puzzles_per_group=ones)
    return folder


def make_sudoku(folder: Path, blanks: Sequence[int], *, box: tuple[int, int] = (2, 2), seed: int = 0) -> Path:
    """Write a data set of a Sudoku for each number of blanks; with many of these it has further solutions."""
    rng = np.random.default_rng(seed)
    side = box[0] * box[1]
    row, col = np.divmod(np.arange(side * side), side)
    solved = (box[1] * row + row // box[0] + col) % side + 2
    sizes: dict[str, Any] = {"seq_len": side * side, "vocab_size": side + 2, "kind": "sudoku", "box": box}
    draw = relabeller(PuzzleDatasetMetadata.model_construct(**sizes))
    labels = np.stack([draw(rng, solved).apply(solved) for _ in blanks])
    order = rng.random(labels.shape).argsort(axis=1).argsort(axis=1)
    inputs = np.where(order < np.array(blanks)[:, None], 1, labels)
    return write_dataset(folder, inputs, labels, side + 2, kind="sudoku", box=box)


def make_mazes(folder: Path, n: int, side: int = 5, seed: int = 0) -> Path:
    """Write a data set of n mazes."""
    questions, answers = random_mazes(np.random.default_rng(seed), 20 * n, side, min_path=2)
    inputs, labels = (values[:n].reshape(n, -1) + 1 for values in (questions, answers))
    return write_dataset(folder, inputs, labels, mazes.VOCAB_SIZE, kind="maze")


def opened(folder: Path, batch: int = 8, **options: Any) -> PuzzleDataset:
    """Open the test split, in batches of so many rows."""
    return PuzzleDataset(folder, "test", global_batch_size=batch, **options)


def solver(metadata: PuzzleDatasetMetadata, max_steps: int = MAX_STEPS) -> ACTLossHead:
    """The model that deduces the answers to these puzzles."""
    sizes = {name: getattr(metadata, name) for name in ("seq_len", "vocab_size", "num_puzzle_identifiers")}
    keys: dict[str, Any] = sizes | {"halt_max_steps": max_steps, "halt_exploration_prob": 0.0}
    key = mx.random.key(0)
    if metadata.kind == "maze":
        return ACTLossHead(Flood(Flood.Config(**keys), key), "softmax_cross_entropy")
    return ACTLossHead(Elimination(Elimination.Config(**keys, box=metadata.box), key), "softmax_cross_entropy")


def random_hrm(metadata: PuzzleDatasetMetadata) -> ACTLossHead:
    """A small HRM with random weights, whose Q values differ from one state to the next. It solves nothing."""
    head = train_state(pretrain_config({"halt_max_steps": MAX_STEPS}), metadata).head
    q_head = head.model.inner.q_head
    q_head.weight, q_head.bias = mx.random.normal(q_head.weight.shape, key=mx.random.key(2)) / 3, mx.zeros(2)
    mx.eval(head.state)
    return head


def write_solver(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> Path:
    """Write a checkpoint of the solver of these puzzles, whose module lies in SOLVERS.

    Args:
        monkeypatch: lets scripts in this process find the module.
    """
    if monkeypatch is not None:
        monkeypatch.setattr(models, "__path__", [*models.__path__, str(SOLVERS)])
    metadata = opened(data).metadata
    head = solver(metadata)
    arch: dict[str, Any] = {
        "name": f"solvers@{type(head.model).__name__}",
        "loss": {"name": "losses@ACTLossHead", "loss_type": "softmax_cross_entropy"},
        "halt_max_steps": MAX_STEPS,
        "halt_exploration_prob": 0.0,
        "forward_dtype": "float32",
    }
    if metadata.box is not None:
        arch["box"] = list(metadata.box)
    (folder / "step_0").mkdir(parents=True)
    config = {"arch": arch, "data_path": str(data), "global_batch_size": 8}
    (folder / "all_config.yaml").write_text(yaml.safe_dump(config))
    weights = {name: host_tensor(array) for name, array in dict(tree_flatten(head.parameters())).items()}
    write_safetensors(folder / "step_0" / "model.safetensors", weights)
    return folder


@dataclass(frozen=True)
class Thought:
    """What an evaluation has found: its results and its files."""

    result: Evaluation
    files: dict[str, np.ndarray]
    calls: int  # of the step

    @property
    def metrics(self) -> dict[str, float]:
        return self.result.metrics


def think(
    data: PuzzleDataset,
    folder: Path,
    head: ACTLossHead | None = None,
    *,
    halt: Any = "max",
    seed: int = 0,
    keep: bool = True,
    **thinking: Any,
) -> Thought:
    """Evaluate a data set with these keys, and save all outputs, with `keep` those of all samples too.

    Args:
        folder: for the predictions; any there are replaced.
    """
    head = head or solver(data.metadata)
    keys = [name for name in OUTPUTS if not (thinking.get("relabel") and name == "logits")]
    search = Search(Thinking(**thinking), data.metadata, seed=seed, keep_samples=keep)
    calls: list[None] = []
    with PredictionWriter(
        folder / "preds", [*keys, *(["samples"] if keep else [])], data.metadata.vocab_size
    ) as writer:
        evaluator = Evaluator(head, halt, search)
        result = evaluate(evaluator, data, writer=writer, after_step=lambda: calls.append(None))
    files = {path.stem: np.load(path) for path in (folder / "preds").iterdir()}
    return Thought(result, files, len(calls))


def all_rows(data: PuzzleDataset) -> dict[str, np.ndarray]:
    """The arrays of the whole split, without padding."""
    batches: list[Batch] = list(data.eval_batches())
    return {
        name: np.concatenate([batch.arrays[name][: batch.num_examples] for batch in batches])
        for name in batches[0].arrays
    }


def literal_steps(
    head: ACTLossHead, arrays: dict[str, np.ndarray], steps: int, noise: float = 0.0, random_init: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """The outputs of the model after each of so many steps, with what the rows would add to the metrics.

    Args:
        arrays: of the rows; those with a sample key are varied.
    """
    model = head.model
    arrays = {SAMPLE_KEY: np.zeros((len(arrays["inputs"]), 2), np.uint32)} | arrays
    batch = {name: mx.array(array) for name, array in arrays.items()}
    carry = model.initial_carry(batch)
    for _ in range(steps):
        carry = vary(model.begin_step(carry, batch), noise, random_init)
        carry, outputs = model(carry, model.puzzle_rows(carry), training=False)
        carry["halted"] = mx.zeros_like(carry["halted"])  # so that none begins again
        found = {name: np.array(outputs[name]) for name in ("logits", "q_halt_logits", "halts")}
        rows = {name: np.array(value) for name, value in head.counted_row_metrics(carry, outputs).items()}
        yield found | rows | {"preds": found["logits"].argmax(axis=-1)}


def literal_movement(logits: list[np.ndarray]) -> np.ndarray:
    """How much the logits `[b, s, v]` of the last 3 steps have moved, `[b]`, from those after every step."""
    if len(logits) == 1:
        return np.full(len(logits[0]), np.inf)
    moves = [np.sqrt(((new - old) ** 2).mean(axis=(1, 2))) for old, new in pairwise(logits)]
    return np.mean(moves[-3:], axis=0)


def literal_choice(
    choose: str,
    holds: np.ndarray,
    best: np.ndarray,
    cost: np.ndarray,
    preds: np.ndarray,
    q: np.ndarray,
    moved: np.ndarray,
) -> tuple[int, int]:
    """Choose among all the samples of a puzzle `[n]`, the slow way. No sample is chosen for what comes after it.

    Returns:
        The chosen sample, and how many samples were needed.
    """
    needed = len(q)
    if choose in ("rules", "auto") and best.any():
        needed = int(np.argmax(best)) + 1
    q = np.where(np.isnan(q), -math.inf, q)
    if choose == "q":
        return int(np.argmax(q)), needed
    if choose == "settled":
        return int(np.argmin(np.where(np.isnan(moved), math.inf, moved))), needed
    if choose == "vote":
        votes = [(preds == answer).all(axis=1) for answer in preds]
        probabilities = 1 / (1 + np.exp(-q.astype(np.float64)))
        return max(range(needed), key=lambda i: (votes[i].sum(), probabilities[votes[i]].mean(), -i)), needed
    verified = [i for i in range(needed) if holds[i]]
    if verified:
        return min(verified, key=lambda i: (cost[i], i)), needed
    return (0 if choose == "rules" else int(np.argmax(q[:needed]))), needed
