"""Checkpoints for solve.py, as a run leaves them: of models that were not trained, and of one that need not be."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import yaml
from mlx.utils import tree_flatten

import models
from dataset.arc_grids import SEQ_LEN, VOCAB_SIZE
from dataset.metadata import PuzzleDatasetMetadata
from tests.helpers.configs import TINY_ARCH, sizes
from utils.checkpoints.puzzles import PUZZLES, puzzles_text
from utils.checkpoints.safetensors_file import read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.weights import WEIGHTS_FILE
from utils.config import CONFIG_FILE, ArchConfig
from utils.model import build_model

SUDOKU_4 = sizes(num_puzzle_identifiers=1).model_copy(update={"kind": "sudoku", "box": (2, 2), "ignore_label_id": 0})
ARC = sizes(SEQ_LEN, VOCAB_SIZE).model_copy(update={"kind": "arc", "ignore_label_id": 0})
RULE_ARCH = {
    "name": "solvers@Elimination",
    "box": [2, 2],
    "loss": TINY_ARCH["loss"],
    "halt_exploration_prob": 0.0,
    "halt_max_steps": 8,
    "forward_dtype": "float32",
}
TINY_ARC_ARCH = TINY_ARCH | {"hidden_size": 16, "num_heads": 1, "puzzle_emb_ndim": 16, "halt_max_steps": 1}


@contextmanager
def rule_model() -> Iterator[None]:
    """Put the model that solves by the rules among the modules of `models`."""
    before = [*models.__path__]
    models.__path__ = [*before, str(Path(__file__).parent)]
    try:
        yield
    finally:
        models.__path__ = before
        sys.modules.pop("models.solvers", None)


def write_model(
    run: Path,
    metadata: PuzzleDatasetMetadata,
    arch: Mapping[str, Any] = TINY_ARCH,
    *,
    recorded: str | None = "as it is",
    data_path: Path | str = "data/none",
    seed: int = 0,
) -> Path:
    """Write a model with random weights, its puzzle embeddings too, as a run's step; returns the step folder.

    `recorded` is the text on the puzzles in the header, None for a checkpoint of before it was recorded.
    """
    head = build_model(ArchConfig.model_validate(dict(arch)), metadata, mx.random.key(seed))
    table = head.model.puzzle_emb
    if table is not None:
        table.weights = mx.random.normal(table.weights.shape, key=mx.random.key(seed + 1))
    run.mkdir(parents=True, exist_ok=True)
    (run / CONFIG_FILE).write_text(yaml.safe_dump({"arch": dict(arch), "data_path": str(data_path)}))
    step = run / "step_1"
    step.mkdir()
    tensors = {name: host_tensor(array) for name, array in dict(tree_flatten(head.parameters())).items()}
    text = puzzles_text(metadata) if recorded == "as it is" else recorded
    write_safetensors(step / WEIGHTS_FILE, tensors, None if text is None else {PUZZLES: text})
    return step


def rewrite_header(file: Path, texts: Mapping[str, str] | None) -> None:
    """Replace the texts in the header of a file of weights."""
    tensors = {name: host_tensor(tensor.read()) for name, tensor in read_safetensors(file).items()}
    write_safetensors(file, tensors, texts)


def sudoku_text(tokens: np.ndarray) -> str:
    """Sudoku tokens as a user types them, by hand and not by the code that is tested."""
    return "".join("?.1234"[token] for token in tokens.tolist())
