"""Reference values of the PyTorch code, and models and batches made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import yaml

from tests.helpers.configs import sizes
from tests.helpers.tiny_data import make_tiny_data
from utils.config import PretrainConfig, parse_pretrain_config
from utils.train.state import TrainState

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/golden.npz"))
KINDS = {  # of values in tests/golden, each with its file in config/arch
    "rope_stablemax": "hrm_v1",
    "learned_softmax": "hrm_v1",
    "trm_att": "trm",
    "trm_mlp": "trm",
    "urm_conv": "urm",
}
OUTPUTS = ("logits", "q_halt_logits", "q_continue_logits", "target_q_continue")
BATCH = ("inputs", "labels", "puzzle_identifiers")


class Tolerance(NamedTuple):
    """How far a port may be from the reference: ten times what rounding alone changes there."""

    outputs: float  # of logits and Q values
    state: float
    gradient: float  # relative to the largest element
    parameter: float  # of the final ones, raw and averaged


HRM = Tolerance(1e-4, 1e-4, 1e-4, 1e-5)
TOLERANCES = {  # by the name of the folder
    "rope_stablemax": HRM,
    "learned_softmax": HRM,
    "trm_att": Tolerance(3e-5, 3e-5, 7e-5, 3e-5),
    "trm_mlp": Tolerance(4e-4, 6e-4, 4e-5, 1e-5),
    "urm_conv": Tolerance(2e-5, 2e-5, 2e-5, 2e-5),
}


def load(folder: Path, micro_batch_size: int | None = None) -> tuple[dict[str, np.ndarray], TrainState]:
    with np.load(folder / "golden.npz") as file:
        golden = {name: file[name] for name in file.files}
    meta = json.loads((folder / "meta.json").read_text())
    state = TrainState(
        config_of(folder),
        sizes(meta["seq_len"], meta["vocab_size"], meta["num_puzzle_identifiers"]),
        total_steps=meta["total_steps"],
        micro_batch_size=micro_batch_size,
        keep={*OUTPUTS, "gradients"} - absent(golden),
    )
    return golden, state


def config_of(folder: Path) -> PretrainConfig:
    """The configuration of a folder, with the keys of this code."""
    values = yaml.safe_load((folder / "all_config.yaml").read_text())
    values["arch"] = {"halt_exploration_prob": 0.0} | values["arch"]  # URM's code has no key for it
    if "data_paths" in values:
        (values["data_path"],) = values["data_paths"]
    for key in ("data_paths", "data_paths_test", "evaluators", "load_checkpoint"):
        values.pop(key, None)
    return parse_pretrain_config(values)


def states_of(golden: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the states in the carry, such as z_H."""
    names = {name.split("/")[3] for name in golden if name.startswith("train/1/carry/")}
    return sorted(names - {"steps", "halted", "current_data"})


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


def golden_data(folder: Path, kind: str) -> tuple[Path, dict[str, np.ndarray]]:
    """A data set whose test split is the batch that the reference evaluated, and the values that it found."""
    with np.load(GOLDEN / kind / "golden.npz") as file:
        golden = {name: file[name] for name in file.files if name.startswith("eval/")}
    make_tiny_data(folder, identifiers=5)
    for name, key in (("inputs", "inputs"), ("labels", "labels"), ("puzzle_identifiers", "puzzle_identifiers")):
        np.save(folder / "test" / f"all__{name}.npy", golden[f"eval/batch/{key}"])
    rows = len(golden["eval/batch/inputs"])
    for name in ("puzzle_indices", "group_indices"):
        np.save(folder / "test" / f"all__{name}.npy", np.arange(rows + 1, dtype=np.int32))
    metadata = json.loads((folder / "test" / "dataset.json").read_text())
    metadata |= {"ignore_label_id": -100, "total_groups": rows}
    (folder / "test" / "dataset.json").write_text(json.dumps(metadata))
    return folder, golden
