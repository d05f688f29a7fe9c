"""A step in slices of `micro_batch_size` rows: the same result as of the whole batch, in less memory."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.helpers.configs import (
    FAMILY,
    TINY_ARCH,
    TINY_TRM,
    bits_of,
    count_calls,
    needs_compile,
    pretrain_config,
    random_batch,
    sizes,
    train_state,
)
from utils.checkpoints.safetensors_file import read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.weights import load_weights
from utils.train.state import TrainState

STEPS = 8
# Of sums in another order, in float32, after some steps. Measured: 4e-6. States, and the logits of them, are amplified
# from one outer step to the next, most by TRM with `mlp_t`: up to 7e-5 after four of them, by BLAS and streams.
TOLERANCE, STATE_TOLERANCE = 5e-5, 3e-4


def state_in_slices(rows: int | None, arch: dict[str, Any] = TINY_ARCH, **changes: Any) -> TrainState:
    """A state whose rows explore and halt at different times."""
    explores = {} if "loops" in arch else {"halt_exploration_prob": 0.5}
    config = pretrain_config(arch | explores, **({"lr_warmup_steps": 3} | changes))
    state = train_state(config, keep={"logits", "gradients"}, micro_batch_size=rows)
    q_head = state.head.model.inner.q_head
    q_head.weight = mx.random.normal(q_head.weight.shape, key=mx.random.key(0))
    return state


def take_steps(state: TrainState, first: int = 0, last: int = STEPS) -> dict[str, np.ndarray]:
    """All that the state is after these steps, and the results of the last one."""
    for step in range(first, last):
        result = state.train_step(random_batch(step))
        assert result.finite.item()
    found = state.weights() | state.named_arrays() | result.metrics | {"logits": result.outputs["logits"]}
    found |= dict(tree_flatten({"gradients": result.outputs["gradients"]}))
    return {name: np.array(array) for name, array in found.items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if array.dtype == np.float32:
            scale = max(1.0, float(np.abs(array).max()))
            tolerance = STATE_TOLERANCE if name.startswith(("carry.", "logits")) else TOLERANCE
            np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        *((arch, {}) for arch in FAMILY.values()),
        (TINY_ARCH, {"ema": True, "ema_rate": 0.9}),
        (TINY_TRM, {"freeze_weights": True}),
        (TINY_ARCH | {"puzzle_emb_ndim": 0}, {"optimizer": {"name": "Lion"}, "lr": 1e-4}),
    ],
    ids=[*FAMILY, "ema", "frozen", "no-puzzle-embedding"],
)
def test_slices_make_the_step_of_the_whole_batch(arch: dict[str, Any], changes: dict[str, Any]) -> None:
    """Weights, moments, average, puzzle embeddings, carry, metrics and outputs, with a shorter slice at the end."""
    whole, sliced = (state_in_slices(rows, arch, **changes) for rows in (None, 3))
    expected = take_steps(whole)
    if "loops" not in arch:  # the rows of URM halt together
        assert len(set(expected["carry.steps"])) > 1, "all rows are at the same place, which tests too little"
    assert_same(take_steps(sliced), expected)


@pytest.mark.parametrize("rows", [8, 100])
def test_a_slice_of_all_rows_is_the_whole_batch_bit_for_bit(rows: int) -> None:
    """A run on a larger machine, where micro_batch_size no longer matters, is that without the key."""
    whole, sliced = state_in_slices(None), state_in_slices(rows)
    for state in (whole, sliced):
        take_steps(state)
    assert bits_of(sliced) == bits_of(whole)


def test_one_row_at_a_time_and_then_five(tmp_path: Path) -> None:
    """Resumed on another machine, with another micro_batch_size."""
    first, second = state_in_slices(1), state_in_slices(5, seed=1)
    take_steps(first, 0, 4)
    for name, arrays in (("weights", first.weights()), ("training", first.named_arrays())):
        write_safetensors(tmp_path / name, {name: host_tensor(array) for name, array in arrays.items()})
    load_weights(second.head, read_safetensors(tmp_path / "weights"), "here")
    second.restore(4, read_safetensors(tmp_path / "training"), "here")
    assert_same(take_steps(second, 4), take_steps(state_in_slices(None)))


def test_a_number_that_is_not_finite_in_one_slice_skips_the_whole_step() -> None:
    """The slices before it have had good gradients, and their rows go back as well."""
    state = state_in_slices(3, ema=True)
    take_steps(state)
    assert state.carry is not None
    carry = state.carry
    z = np.array(carry["z_H"])
    z[7] = math.nan
    state.carry = carry | {"z_H": mx.array(z), "halted": mx.zeros_like(carry["halted"])}
    before = bits_of(state)
    result = state.train_step(random_batch(STEPS))
    assert not result.finite.item()
    assert np.isfinite(np.array(result.outputs["logits"][:6])).all()
    after = bits_of(state)
    assert {name for name in before if after[name] != before[name]} <= {"random.key", "optimizer.learning_rate"}
    state.carry = carry
    take_steps(state, STEPS + 1, STEPS + 2)


@needs_compile
def test_slices_are_traced_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    state = state_in_slices(3)
    take_steps(state, 0, 3)
    assert len(calls) == 2  # of three rows, and of the two that are left


def peak_of_a_step(rows: int | None) -> int:
    """Bytes at most in a step of 16 rows of 128 tokens, beyond what is held before it."""
    arch = {"hidden_size": 64, "puzzle_emb_ndim": 64}
    config = pretrain_config(arch, global_batch_size=16)
    state, batch = (
        train_state(config, sizes(seq_len=128), micro_batch_size=rows),
        random_batch(0, batch=16, seq_len=128),
    )
    mx.eval(batch, state.arrays)
    gc.collect()  # what earlier tests have left
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(state.train_step(batch), state.carry, state.arrays)
    return mx.get_peak_memory() - before


def test_smaller_slices_take_less_memory() -> None:
    """Half the rows, about half the activations: this is what the key is for."""
    whole, half, quarter = (peak_of_a_step(rows) for rows in (None, 8, 4))
    assert half < 0.65 * whole
    assert quarter < 0.65 * half
