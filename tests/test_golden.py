"""The port computes what the PyTorch code computed, step by step, for every folder of values in tests/golden/.

If one of these fails, published numbers can't be reproduced with this code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.helpers.golden import BATCH, FOLDERS, OUTPUTS, TOLERANCES, absent, batch_of, load, set_weights, states_of
from utils.evaluation.evaluate import Evaluator
from utils.evaluation.predictions import to_numpy
from utils.train.state import TrainState

COUNTS = ("count", "exact_accuracy", "q_halt_accuracy", "steps")
LOSS_RELATIVE = 1e-5
METRIC_ABSOLUTE = 1e-4
ROW_BY_ROW = ("rope_stablemax", "trm_att")  # folders that are also trained one row at a time, which takes a while
MAX_UNDECIDED = 3  # elements of a parameter
REFERENCE_GRADIENT_PRECISION = 1e-5  # the reference's own float32 and float64 runs differ by as much, relative


def assert_close(found: Any, expected: np.ndarray, tolerance: float, what: str) -> None:
    np.testing.assert_allclose(
        to_numpy(mx.array(found)).astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance, err_msg=what
    )


def assert_metrics(found: Mapping[str, mx.array], golden: Mapping[str, np.ndarray], prefix: str) -> None:
    expected = {name.removeprefix(f"{prefix}/"): a for name, a in golden.items() if name.startswith(f"{prefix}/")}
    assert found.keys() - {"loss"} == expected.keys()
    for name, value in expected.items():
        if name in COUNTS:
            assert found[name].item() == value, f"{prefix}/{name}"
        else:
            assert found[name].item() == pytest.approx(float(value), rel=LOSS_RELATIVE, abs=METRIC_ABSOLUTE), (
                f"{prefix}/{name}"
            )


def assert_parameters(
    found: Mapping[str, mx.array], golden: Mapping[str, np.ndarray], prefix: str, tolerance: float
) -> None:
    assert found.keys() == {name.removeprefix(prefix) for name in golden if name.startswith(prefix)}
    for name, array in found.items():
        assert_close(array, golden[f"{prefix}{name}"], tolerance, f"{prefix}{name}")


def settle_undecided_signs(
    state: TrainState, gradients: dict[str, np.ndarray], golden: Mapping[str, np.ndarray]
) -> None:
    """Impose the reference's sign on gradient elements that are nothing but rounding.

    The very first AdamATan2 update is lr · sign(g), up to a constant. Where |g| is below the reference's own precision
    the sign depends on the order of a sum, that is on the BLAS, and a single one of them moves all later logits by more
    than the tolerance. For these elements alone, parameter, moments and average are set to what the reference's
    gradient makes of them.
    """
    config, lr = state.config, float(golden["train/1/lr"])
    for name, ours in gradients.items():
        reference = golden[f"train/1/grad/{name}"]
        flipped = np.sign(ours) != np.sign(reference)
        if not flipped.any():
            continue
        assert flipped.sum() <= MAX_UNDECIDED, name
        assert np.abs(reference[flipped]).max() <= REFERENCE_GRADIENT_PRECISION * np.abs(reference).max(), name
        g = reference.astype(np.float64)
        m, v = (1 - config.beta1) * g, (1 - config.beta2) * g**2
        update = np.arctan2(m, np.sqrt(v / (1 - config.beta2))) / (1 - config.beta1)
        p = golden[f"init/{name}"] * (1 - lr * config.weight_decay) - lr * update
        averaged = config.ema_rate * golden[f"init/{name}"] + (1 - config.ema_rate) * p
        for tree, path, value in (
            (state.head, name, p),
            *([(state.ema["weights"], name, averaged)] if config.ema else []),
            (state.optimizer.state, f"{name}.m", m),
            (state.optimizer.state, f"{name}.v", v),
        ):
            *parents, leaf = path.split(".")
            for parent in parents:
                tree = tree[int(parent)] if parent.isdigit() else tree[parent]
            tree[leaf] = mx.array(np.where(flipped, value, np.array(tree[leaf])).astype(np.float32))


@pytest.mark.parametrize(
    ("folder", "micro_batch_size"),
    [
        *((folder, rows) for folder in FOLDERS for rows in (None, 3)),
        *((folder, 1) for folder in FOLDERS if folder.name in ROW_BY_ROW),
    ],
    ids=lambda value: f"golden-{value.name}" if isinstance(value, Path) else f"slices-{value}",
)
def test_training_follows_the_reference(folder: Path, micro_batch_size: int | None) -> None:
    """All rows at once, and in slices: what somebody with little memory computes is the same."""
    golden, state = load(folder, micro_batch_size)
    tolerance = TOLERANCES[folder.name]
    set_weights(state, golden, "init/")

    steps = sorted({int(name.split("/")[1]) for name in golden if name.startswith("train/")})
    assert steps == list(range(1, len(steps) + 1))
    for t in steps:
        prefix = f"train/{t}"
        metrics, outputs, finite, _ = state.train_step(batch_of(golden, prefix))
        mx.eval(metrics, outputs, state.carry, state.arrays)

        assert finite.item()
        assert metrics["loss"].item() == pytest.approx(float(golden[f"{prefix}/loss"]), rel=LOSS_RELATIVE)
        assert state.learning_rates(t)[0] == pytest.approx(float(golden[f"{prefix}/lr"]), rel=1e-9)
        assert_metrics(metrics, golden, f"{prefix}/metrics")
        for name in set(OUTPUTS) - absent(golden):
            assert_close(outputs[name], golden[f"{prefix}/{name}"], tolerance.outputs, f"{prefix}/{name}")
        carry = dict(tree_flatten(state.carry))
        for name in states_of(golden):
            assert_close(carry[name], golden[f"{prefix}/carry/{name}"], tolerance.state, f"{prefix}/carry/{name}")
        for name in ("steps", "halted", *(f"current_data.{name}" for name in BATCH)):
            expected = golden[f"{prefix}/carry/{name.replace('.', '/')}"]
            np.testing.assert_array_equal(np.array(carry[name]), expected, err_msg=f"{prefix}/carry/{name}")

        gradients = {name: np.array(array) for name, array in tree_flatten(outputs["gradients"][0])}
        checked = {name.split("/grad/")[1] for name in golden if name.startswith(f"{prefix}/grad/")}
        assert checked <= gradients.keys() | {"puzzle_emb_local"}
        for name in checked:
            ours = np.array(outputs["gradients"][1]) if name == "puzzle_emb_local" else gradients[name]
            expected = golden[f"{prefix}/grad/{name}"]
            assert_close(ours, expected, tolerance.gradient * np.abs(expected).max(), f"{prefix}/grad/{name}")
        assert checked or t > 2, "the gradients of the first two steps are needed"
        if t == 1:
            settle_undecided_signs(state, gradients, golden)

    assert_parameters(dict(tree_flatten(state.head.parameters())), golden, "final/", tolerance.parameter)
    if state.config.ema:
        assert_parameters(state.weights(), golden, "ema/", tolerance.parameter)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"golden-{folder.name}")
def test_evaluation_follows_the_reference(folder: Path) -> None:
    """With the averaged weights, where there are any."""
    golden, state = load(folder)
    tolerance = TOLERANCES[folder.name].outputs
    set_weights(state, golden, "ema/" if state.config.ema else "final/")
    evaluator = Evaluator(state.head)
    outer_steps = list(evaluator.outer_steps(batch_of(golden, "eval")))

    assert len(outer_steps) == int(golden["eval/steps"])
    for n, (_, _, outputs) in enumerate(outer_steps, start=1):
        assert_close(outputs["logits"], golden[f"eval/step/{n}/logits"], tolerance, f"eval/step/{n}/logits")
    _, metrics, outputs = outer_steps[-1]
    for name in ("logits", "q_halt_logits", "q_continue_logits"):
        assert_close(outputs[name], golden[f"eval/{name}"], tolerance, f"eval/{name}")
    np.testing.assert_array_equal(np.array(outputs["preds"]), golden["eval/logits"].argmax(-1))
    assert metrics["loss"].item() == pytest.approx(float(golden["eval/loss"]), rel=LOSS_RELATIVE)
    assert_metrics(metrics, golden, "eval/metrics")


def test_there_are_reference_values() -> None:
    assert {folder.name for folder in FOLDERS} >= TOLERANCES.keys()
