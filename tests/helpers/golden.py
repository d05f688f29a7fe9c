"""Reference values of the PyTorch code, and models and batches made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np
import yaml

from tests.helpers.configs import sizes
from utils.config import parse_pretrain_config
from utils.train.state import TrainState

FOLDERS = sorted(path.parent for path in (Path(__file__).parents[1] / "golden").glob("*/golden.npz"))
OUTPUTS = ("logits", "q_halt_logits", "q_continue_logits", "target_q_continue")
BATCH = ("inputs", "labels", "puzzle_identifiers")
ABSOLUTE = 1e-4  # of logits, Q values and states


def load(folder: Path) -> tuple[dict[str, np.ndarray], TrainState]:
    with np.load(folder / "golden.npz") as file:
        golden = {name: file[name] for name in file.files}
    meta = json.loads((folder / "meta.json").read_text())
    config = parse_pretrain_config(yaml.safe_load((folder / "all_config.yaml").read_text()))
    state = TrainState(
        config,
        sizes(meta["seq_len"], meta["vocab_size"], meta["num_puzzle_identifiers"]),
        total_steps=meta["total_steps"],
        keep={*OUTPUTS, "gradients"} - absent(golden),
    )
    return golden, state


def absent(golden: Mapping[str, np.ndarray]) -> set[str]:
    """Outputs that this configuration does not have: no Q-continue target where every row halts at once."""
    return {name for name in OUTPUTS if f"train/1/{name}" not in golden}


def set_weights(state: TrainState, golden: Mapping[str, np.ndarray], prefix: str) -> None:
    weights = [
        (name.removeprefix(prefix), mx.array(array)) for name, array in golden.items() if name.startswith(prefix)
    ]
    state.head.load_weights(weights, strict=True)


def batch_of(golden: Mapping[str, np.ndarray], prefix: str) -> dict[str, mx.array]:
    return {name: mx.array(golden[f"{prefix}/batch/{name}"]) for name in BATCH}
