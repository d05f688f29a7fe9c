"""eval_halt=q: every example gets what it had at its own halting step, whichever slot it took, in the set's order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import evaluate
import pretrain
from dataset.puzzle_dataset import Batch, PuzzleDataset
from models.losses import ACTLossHead
from tests.helpers import golden as golden_values
from tests.helpers.configs import pretrain_config, train_state
from tests.helpers.tiny_data import NUM_TEST, make_tiny_data, puzzles, split_test_set, train_arguments
from utils.evaluation.evaluate import Evaluator
from utils.evaluation.evaluate import evaluate as run_evaluation
from utils.evaluation.predictions import PredictionWriter, to_numpy
from utils.train.state import to_device

MAX_STEPS = 6
BATCH = 8
METRICS = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss", "q_halt_loss")
OUTPUTS = ["preds", "logits", "q_halt_logits", "q_continue_logits"]


def model(*, bias: tuple[float, float] = (-5.0, -5.0), undecided: bool = False) -> ACTLossHead:
    """Random, with the given bias of the Q values; if undecided, rows halt after anything from one step to all."""
    head = train_state(pretrain_config({"halt_max_steps": MAX_STEPS, "H_cycles": 2})).head
    inner = head.model.inner
    inner.q_head.bias = mx.array(bias)
    if undecided:  # puzzle embeddings tell the rows apart
        weight, table = inner.q_head.weight, inner.puzzle_emb.weights
        inner.q_head.weight = 0.3 * mx.random.normal(weight.shape, key=mx.random.key(2))
        inner.puzzle_emb.weights = mx.random.normal(table.shape, key=mx.random.key(8))
    mx.eval(head.state)
    return head


def batches_of(*sizes: int) -> list[Batch]:
    """Batches with so many real rows; the others are padding."""
    found = []
    for seed, size in enumerate(sizes):
        inputs, labels = (array.astype(np.int32) for array in puzzles(BATCH, seed=seed))
        inputs[size:], labels[size:] = 0, -100
        identifiers = np.arange(BATCH, dtype=np.int32) % 5
        arrays = {"inputs": inputs, "labels": labels, "puzzle_identifiers": identifiers}
        found.append(Batch("all", arrays, size))
    return found


def at_halting_steps(head: ACTLossHead, batch: dict[str, mx.array]) -> dict[str, np.ndarray]:
    """Outputs, and what each row adds to the metrics, at the first step of a `max` run where the model's rule halts."""
    found: dict[str, np.ndarray] = {}
    halted = np.zeros(batch["inputs"].shape[0], bool)
    for step, (carry, _, outputs) in enumerate(Evaluator(head).outer_steps(batch), start=1):
        rows = head.counted_row_metrics(carry, outputs) | {name: outputs[name] for name in OUTPUTS}
        last = step == head.model.config.halt_max_steps
        stops = ~halted & (last | to_numpy(head.model.inner.halts(outputs)))
        for name, array in rows.items():
            found.setdefault(name, np.zeros_like(to_numpy(array)))[stops] = to_numpy(array)[stops]
        halted |= stops
    return found


def test_every_row_has_what_max_had_at_its_halting_step() -> None:
    """A row that found a trace of another in its slot, or whose results went to another, would be a wrong answer."""
    head = model(undecided=True)
    batches = batches_of(8, 8, 8, 8, 8, 5)
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    evaluator = Evaluator(head, "q")
    writer = PredictionWriter(Path("unused"), OUTPUTS, 6)
    results = list(evaluator.results(iter(batches), writer, count))
    assert [batch for batch, _, _ in results] == batches
    steps: list[int] = []
    for batch, metrics, outputs in results:
        expected, real = at_halting_steps(head, to_device(batch)), slice(batch.num_examples)
        np.testing.assert_array_equal(outputs["preds"][real], expected["preds"][real])
        for name in OUTPUTS[1:]:
            np.testing.assert_allclose(outputs[name][real], expected[name][real], rtol=0, atol=1e-5)
        for name in ("count", *METRICS):
            assert metrics[name] == pytest.approx(expected[name][real].sum(), rel=1e-5, abs=1e-5)
        steps += expected["steps"][real].astype(int).tolist()
    assert {1, MAX_STEPS} < set(steps)  # or the test would have tested little
    assert calls <= sum(steps) / BATCH + MAX_STEPS  # all slots are taken until the end


@pytest.mark.parametrize("folder", golden_values.FOLDERS, ids=lambda folder: f"golden-{folder.name}")
def test_reference_weights_halt_with_the_reference_s_results(folder: Path) -> None:
    golden, state = golden_values.load(folder)
    tolerance = golden_values.TOLERANCES[folder.name].outputs
    golden_values.set_weights(state, golden, "ema/" if state.config.ema else "final/")
    batch = golden_values.batch_of(golden, "eval")
    arrays = {name: np.array(array) for name, array in batch.items()}
    rows = len(arrays["inputs"])
    given = Batch("all", arrays, rows)
    expected = at_halting_steps(state.head, batch)
    writer = PredictionWriter(Path("unused"), OUTPUTS, 256)
    ((_, metrics, outputs),) = Evaluator(state.head, "q").results(iter([given]), writer, lambda: None)
    np.testing.assert_array_equal(outputs["preds"], expected["preds"])
    for row, step in enumerate(expected["steps"].astype(int)):
        if step > 0:
            reference = golden[f"eval/step/{step}/logits"][row]
            np.testing.assert_allclose(outputs["logits"][row], reference, rtol=0, atol=tolerance)
    np.testing.assert_allclose(outputs["logits"], expected["logits"], rtol=0, atol=1e-5)
    assert metrics["steps"] == expected["steps"].sum()


def test_batches_without_examples_come_back_as_such() -> None:
    """One of several ranks may have nothing but padding in the last batch, or at all; the others wait for it."""
    head = model(undecided=True)
    for sizes in ((0,), (8, 0), (0, 0)):
        results = list(Evaluator(head, "q").results(iter(batches_of(*sizes)), None, lambda: None))
        assert [batch.num_examples for batch, _, _ in results] == list(sizes)
        assert [metrics["count"] for _, metrics, _ in results] == list(sizes)
        assert results[-1][1]["q_halt_loss"] == 0
        assert results[-1][2]["preds"].shape == (BATCH, 16)


@pytest.fixture
def test_set(tmp_path: Path) -> PuzzleDataset:
    folder = make_tiny_data(tmp_path / "sudoku-4x4", identifiers=5)
    split_test_set(folder)
    return PuzzleDataset(folder, "test", global_batch_size=BATCH)


def test_where_no_row_halts_early_nothing_differs_from_max(test_set: PuzzleDataset, tmp_path: Path) -> None:
    """20 examples in two sets, in batches of 8: sets, order, padding and samples are those of `max`."""
    head = model()
    found = []
    for halt in ("max", "q"):
        with PredictionWriter(tmp_path / halt, [*OUTPUTS, "inputs", "puzzle_identifiers"], 6) as writer:
            found.append(run_evaluation(Evaluator(head, halt), test_set, writer=writer, num_shown=10))
    expected, result = found
    assert result.num_examples == expected.num_examples == NUM_TEST
    assert result.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        if name.startswith("eval/hard") and name.endswith("q_halt_loss"):
            assert result.metrics[name] < value  # `max` has the padding rows in it
        else:
            assert result.metrics[name] == pytest.approx(value, rel=1e-5), name
    assert result.metrics["eval/hard/steps"] == MAX_STEPS
    for ours, theirs in zip(result.shown, expected.shown, strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    for path in (tmp_path / "max").iterdir():
        np.testing.assert_allclose(np.load(tmp_path / "q" / path.name), np.load(path), rtol=0, atol=1e-5)


def test_a_model_that_halts_at_once_takes_one_step_an_example(test_set: PuzzleDataset) -> None:
    calls = []
    evaluator = Evaluator(model(bias=(1.0, -1.0)), "q")
    result = run_evaluation(evaluator, test_set, after_step=lambda: calls.append(1))
    assert result.metrics["eval/easy/steps"] == result.metrics["eval/hard/steps"] == 1
    assert len(calls) == 3  # 20 examples, 8 slots: no slot is kept free between the two sets


def test_pretrain_logs_what_evaluate_prints(tmp_path: Path, call_script: Callable[..., Any]) -> None:
    data = make_tiny_data(tmp_path / "sudoku-4x4")
    run = tmp_path / "run"
    # With such a rate the Q values are anywhere.
    options = ("epochs=1", "eval_halt=q", "lr=2e-2", "arch.halt_exploration_prob=0.5")
    status, _, err = call_script(pretrain, *train_arguments(data, run, *options))
    assert status == 0, err
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    records = []
    for halt in ("q", "max"):
        status, out, err = call_script(evaluate, f"checkpoint={run}", f"eval_halt={halt}", "global_batch_size=4")
        assert status == 0, err
        records.append(json.loads(out.splitlines()[-1]))
    for name in METRICS:
        assert records[0][f"eval/{name}"] == pytest.approx(logged[f"eval/{name}"], rel=1e-5)
    assert records[0]["eval/steps"] <= records[1]["eval/steps"] == 3


@pytest.mark.parametrize("script", ["pretrain", "evaluate"])
def test_a_film_of_all_steps_is_refused_in_one_line(
    script: str, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    """The film would have rows of different lengths; without a word it would lack the steps after a row has halted."""
    arguments = {
        "pretrain": train_arguments(tmp_path, tmp_path / "run", "eval_halt=q", "eval_save_outputs=[step_preds]"),
        "evaluate": [f"checkpoint={tmp_path}", "eval_halt=q", "save_outputs=[preds,step_preds]"],
    }[script]
    status, _, err = call_script({"pretrain": pretrain, "evaluate": evaluate}[script], *arguments)
    assert status == 1
    assert len(err.splitlines()) == 1
    assert "step_preds" in err
    assert "eval_halt=max" in err
