"""Small configurations for tests, as a user would write them in YAML."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from dataset.metadata import PuzzleDatasetMetadata
from models.act import ACTModel
from utils.checkpoints.stored_tensors import host_tensor
from utils.config import PretrainConfig, parse_pretrain_config
from utils.train.state import TrainState

TINY_ARCH: dict[str, Any] = {
    "name": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
    "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
    "halt_exploration_prob": 0.1,
    "halt_max_steps": 4,
    "H_cycles": 1,
    "L_cycles": 1,
    "H_layers": 1,
    "L_layers": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "expansion": 4,
    "puzzle_emb_ndim": 32,
    "pos_encodings": "rope",
    "forward_dtype": "float32",
}
TINY_TRM: dict[str, Any] = {
    "name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "loss": TINY_ARCH["loss"],
    "halt_exploration_prob": 0.1,
    "halt_max_steps": 4,
    "H_cycles": 2,
    "L_cycles": 2,
    "L_layers": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "expansion": 4,
    "puzzle_emb_ndim": 32,
    "puzzle_emb_len": 3,
    "pos_encodings": "rope",
    "forward_dtype": "float32",
}
TINY_TRM_MLP = TINY_TRM | {"mlp_t": True, "pos_encodings": "none"}
TINY_URM: dict[str, Any] = {
    "name": "urm.urm@URM",
    "loss": TINY_ARCH["loss"],
    "loops": 4,
    "H_cycles": 2,
    "L_cycles": 2,
    "num_layers": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "expansion": 4,
    "puzzle_emb_ndim": 32,
    "forward_dtype": "float32",
}
FAMILY = {"hrm": TINY_ARCH, "trm": TINY_TRM, "trm_mlp": TINY_TRM_MLP, "urm": TINY_URM}
DEFAULT_ARCH = TINY_ARCH | {
    "halt_max_steps": 16,
    "H_cycles": 2,
    "L_cycles": 2,
    "H_layers": 4,
    "L_layers": 4,
    "hidden_size": 512,
    "num_heads": 8,
    "puzzle_emb_ndim": 512,
}


def pretrain_config(arch: dict[str, Any] | None = None, **changes: Any) -> PretrainConfig:
    """A training configuration with the tiny HRM, changed as asked, or with a whole other architecture."""
    values = {
        "arch": arch if arch and {"name", "loss"} <= arch.keys() else TINY_ARCH | (arch or {}),
        "data_path": "data/none",
        "global_batch_size": 8,
        "epochs": 1,
        "lr": 1e-3,
        "lr_min_ratio": 1.0,
        "lr_warmup_steps": 10,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "puzzle_emb_lr": 1e-2,
        "puzzle_emb_weight_decay": 0.1,
    }
    return parse_pretrain_config(values | changes)


def sizes(seq_len: int = 16, vocab_size: int = 6, num_puzzle_identifiers: int = 5) -> PuzzleDatasetMetadata:
    """The metadata of a data set in these sizes."""
    return PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=None,
        blank_identifier_id=0,
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_puzzle_identifiers=num_puzzle_identifiers,
        total_groups=1,
        mean_puzzle_examples=1.0,
        sets=["all"],
    )


def random_batch(seed: int, *, batch: int = 8, seq_len: int = 16, vocab_size: int = 6, identifiers: int = 5) -> Any:
    """A batch of random tokens, all labelled."""
    inputs, labels, ids = (mx.random.key(seed * 3 + i) for i in range(3))
    return {
        "inputs": mx.random.randint(1, vocab_size, (batch, seq_len), key=inputs),
        "labels": mx.random.randint(1, vocab_size, (batch, seq_len), key=labels),
        "puzzle_identifiers": mx.random.randint(0, identifiers, (batch,), key=ids),
    }


def train_state(
    config: PretrainConfig | None = None, metadata: PuzzleDatasetMetadata | None = None, **options: Any
) -> TrainState:
    """A training state in the sizes of `random_batch`."""
    return TrainState(config or pretrain_config(), metadata or sizes(), **({"total_steps": 100} | options))


def bits_of(state: TrainState) -> dict[str, tuple[str, bytes]]:
    """All that the next step depends on, bit for bit: weights, optimiser, random state and carry, by name."""
    tensors = {name: host_tensor(array) for name, array in (state.weights() | state.named_arrays()).items()}
    return {name: (tensor.dtype, tensor.data.tobytes()) for name, tensor in tensors.items()}


def mlx_compiles() -> bool:
    """Whether `mx.compile` does anything: on a Linux CPU without g++ it calls the function anew each time."""
    calls = []
    compiled = mx.compile(lambda x: calls.append(1) or x + 1)
    mx.eval(compiled(mx.zeros(1)), compiled(mx.zeros(1)))
    return len(calls) == 1


needs_compile = pytest.mark.skipif(not mlx_compiles(), reason="without g++ MLX calls the function at every step")


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Have every call of a model leave an entry in the list: of compiled functions, those that trace it."""
    calls: list[None] = []
    call = ACTModel.__call__

    def counted(self: ACTModel, *arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return call(self, *arguments, **options)

    monkeypatch.setattr(ACTModel, "__call__", counted)
    return calls
