"""A restored state is the state that was saved: every later step comes out bit for bit the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from common.errors import UserError
from tests.helpers.configs import (
    TINY_TRM,
    TINY_TRM_MLP,
    TINY_URM,
    bits_of,
    pretrain_config,
    random_batch,
    sizes,
    train_state,
)
from utils.checkpoints.safetensors_file import read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import StoredTensor, host_tensor
from utils.checkpoints.weights import load_weights
from utils.train.state import TrainState

STEPS = 7


def make_state(arch: dict[str, Any], **changes: Any) -> TrainState:
    """Rows halt by chance, warm-up and decay are under way, and there are five puzzle identifiers."""
    config = pretrain_config({"halt_exploration_prob": 0.5} | arch, lr_warmup_steps=10, lr_min_ratio=0.1, **changes)
    state = train_state(config, total_steps=20)
    q_head = state.head.model.inner.q_head
    q_head.weight = mx.random.normal(q_head.weight.shape, key=mx.random.key(0))  # zero, they halt all together
    q_head.bias = mx.zeros_like(q_head.bias)
    return state


def save(state: TrainState, folder: Path) -> None:
    for name, arrays in (("weights", state.weights()), ("training", state.named_arrays())):
        tensors = {name: host_tensor(array) for name, array in arrays.items()}
        write_safetensors(folder / f"{name}.safetensors", tensors)


def restore(state: TrainState, folder: Path, step: int = STEPS) -> None:
    load_weights(state.head, read_safetensors(folder / "weights.safetensors"), "here")
    state.restore(step, read_safetensors(folder / "training.safetensors"), "here")


def take_steps(state: TrainState, first: int, last: int) -> list[dict[str, Any]]:
    """The metrics of steps `first` to `last`, whose batches depend on nothing but their number."""
    found = [state.train_step(random_batch(step)).metrics for step in range(first, last + 1)]
    return [{name: value.item() for name, value in metrics.items()} for metrics in found]


@pytest.mark.parametrize(
    ("arch", "begun", "changes"),
    [
        ({"forward_dtype": "float32"}, False, {}),
        ({"forward_dtype": "float32"}, True, {"ema": True}),
        ({"forward_dtype": "bfloat16"}, False, {"ema": True}),
        ({"forward_dtype": "float16", "pos_encodings": "learned"}, True, {}),
        (TINY_TRM, True, {"ema": True}),
        (TINY_TRM_MLP, False, {"ema": True, "ema_rate": 0.9}),
        (TINY_URM, True, {"ema": True}),
        ({"forward_dtype": "float32"}, True, {"freeze_weights": True}),
        (TINY_TRM_MLP, False, {"freeze_weights": True, "ema": True}),
    ],
    ids=["float32", "float32-ema", "bfloat16-ema", "float16", "trm", "trm_mlp", "urm", "frozen", "frozen-trm-ema"],
)
def test_a_restored_state_goes_on_bit_for_bit_the_same(
    tmp_path: Path, arch: dict[str, Any], begun: bool, changes: dict[str, Any]
) -> None:
    """Weights and their average, both moments, random numbers, the rows in the middle of a puzzle, the place in the
    schedule."""
    original = make_state(arch, **changes)
    take_steps(original, 1, STEPS)
    save(original, tmp_path)
    assert original.carry is not None
    assert len(set(original.carry["steps"].tolist())) > 1, "all rows are at the same place, which tests too little"

    restored = make_state(arch, seed=1, **changes)  # nothing may be left of what it began with
    if begun:
        take_steps(restored, 1, 3)
    restore(restored, tmp_path)
    assert bits_of(restored) == bits_of(original)
    assert take_steps(restored, STEPS + 1, 15) == take_steps(original, STEPS + 1, 15)
    assert bits_of(restored) == bits_of(original)
    assert (restored.step, restored.learning_rates(16)) == (15, original.learning_rates(16))


def test_what_is_saved_is_not_changed_by_later_steps(tmp_path: Path) -> None:
    """The checkpoint is written while training goes on."""
    state = make_state({})
    take_steps(state, 1, STEPS)
    before = bits_of(state)
    tensors = {name: host_tensor(array) for name, array in (state.weights() | state.named_arrays()).items()}
    take_steps(state, STEPS + 1, 15)
    assert {name: (tensor.dtype, tensor.data.tobytes()) for name, tensor in tensors.items()} == before


def test_all_that_moves_has_a_name() -> None:
    """What is not in a checkpoint begins anew at each resume."""
    state = make_state({})
    take_steps(state, 1, 1)
    before = bits_of(state)
    take_steps(state, 2, 2)
    named = state.named_arrays()
    moments = {f"optimizer.{name}.{m}" for name in trainable(state) for m in "mv"}
    assert named.keys() - moments == {
        "optimizer.step",
        "optimizer.learning_rate",
        "random.key",
        "carry.z_H",
        "carry.z_L",
        "carry.steps",
        "carry.halted",
        "carry.current_data.inputs",
        "carry.current_data.labels",
        "carry.current_data.puzzle_identifiers",
    }
    assert moments <= named.keys()
    after = bits_of(state)
    assert all(after[name] != before[name] for name in moments if name.endswith(".v"))
    assert not state.weights().keys() & named.keys()


def trainable(state: TrainState) -> set[str]:
    fixed = ("H_init", "L_init", "puzzle_emb.weights")
    return {name for name in state.weights() if not name.endswith(fixed)}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, StoredTensor]:
    state = make_state({})
    take_steps(state, 1, 2)
    save(state, tmp_path)
    return read_safetensors(tmp_path / "training.safetensors")


def refusal(state: TrainState, arrays: dict[str, StoredTensor]) -> str:
    with pytest.raises(UserError) as error:
        state.restore(2, arrays, "run/step_2")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.step",
        "optimizer.model.inner.lm_head.weight.v",
        "random.key",
        "carry.z_H",
        "carry.current_data.labels",
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(stored: dict[str, StoredTensor], name: str) -> None:
    """The compiled step would fail with a page of traceback, or take another shape for a new graph."""
    state, tensor = make_state({}), stored[name]
    without = {other: array for other, array in stored.items() if other != name}
    assert refusal(state, without).startswith(f"run/step_2: {name} is missing, expected ")

    longer = dataclasses.replace(tensor, shape=(3, *tensor.shape), strides=(0, *tensor.strides))
    message = refusal(state, stored | {name: longer})
    assert message.startswith(f"run/step_2: {name} is {tensor.dtype} {longer.shape}, expected ")
    assert f"{tensor.shape}; was it made by another version?" in message

    other = "int32" if tensor.dtype != "int32" else "uint32"
    assert f"{name} is {other} {tensor.shape}" in refusal(
        state, stored | {name: dataclasses.replace(tensor, dtype=other)}
    )


def test_a_state_of_other_sizes_is_refused(stored: dict[str, StoredTensor]) -> None:
    wider = train_state(pretrain_config({"hidden_size": 64, "puzzle_emb_ndim": 64}))
    assert "is float32" in refusal(wider, stored)
    longer = train_state(pretrain_config(), sizes(seq_len=20))
    assert "carry." in refusal(longer, stored)
    more_rows = train_state(pretrain_config(global_batch_size=16))
    assert "(8, " in refusal(more_rows, stored)
    half = train_state(pretrain_config({"forward_dtype": "bfloat16"}))
    assert "carry.z_H is float32" in refusal(half, stored)


def test_restoring_leaves_the_random_stream_of_mlx_alone(tmp_path: Path) -> None:
    """A notebook that draws numbers besides would draw others after a resume."""
    state = make_state({})
    take_steps(state, 1, 2)
    save(state, tmp_path)
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(5)
    restored = make_state({})
    restore(restored, tmp_path, step=2)
    take_steps(restored, 3, 4)
    assert mx.random.uniform(shape=(4,)).tolist() == expected
