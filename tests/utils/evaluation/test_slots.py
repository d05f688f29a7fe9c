"""Evaluation in slots: what an example gets depends on neither its slot nor its neighbours, in the set's order.

First with eval_halt=q, where every example has to get what it had at its own halting step; then with samples.
"""

from __future__ import annotations

import gc
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
from tests.helpers.scripted import BEST, DETOUR, WRONG, Scripts, Try, play, tries_of
from tests.helpers.thinking import literal_choice, make_sudoku, opened
from tests.helpers.tiny_data import NUM_TEST, make_tiny_data, puzzles, split_test_set, train_arguments
from utils.evaluation import slots
from utils.evaluation.evaluate import Evaluator
from utils.evaluation.evaluate import evaluate as run_evaluation
from utils.evaluation.predictions import PredictionWriter, to_numpy
from utils.evaluation.search import Search
from utils.evaluation.thinking import Choose, Thinking
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


@pytest.mark.parametrize("samples", [1, 3])
def test_batches_without_examples_come_back_as_such(samples: int) -> None:
    """One of several ranks may have nothing but padding in the last batch, or at all; the others wait for it."""
    search = Search(Thinking(samples=samples, noise=0.1 * (samples > 1)), None)
    for sizes in ((0,), (8, 0), (0, 0)):
        evaluator = Evaluator(model(undecided=True), "q", search)
        results = list(evaluator.results(iter(batches_of(*sizes)), None, lambda: None))
        assert [batch.num_examples for batch, _, _ in results] == list(sizes)
        assert [metrics["count"] for _, metrics, _ in results] == list(sizes)
        assert len({frozenset(metrics) for _, metrics, _ in results}) == 1
        assert results[-1][1]["q_halt_loss"] == 0
        assert results[-1][1].get("row_steps", 0) == 0
        assert results[-1][2]["preds"].shape == (BATCH, 16)
        assert search.curve.puzzles == sum(sizes)


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


# ---------------------------------------------------------------------------------------------------------- samples


def wrong(steps: int, q: float = 0.0, answer: int = 1) -> Try:
    return Try(np.tile([WRONG, 0, answer], (steps, 1)), q)


def right_after(steps: int, of: int) -> Try:
    """Right after so many steps, and wrong again after the next, if there is one."""
    return Try(np.where(np.arange(1, of + 1)[:, None] == steps, [BEST, 0, 0], [WRONG, 0, 1]))


def random_scripts(rng: np.random.Generator, number_of_puzzles: int, samples: int) -> Scripts:
    """Answers of all kinds after one to five steps; only some puzzles are ever solved."""
    hard = rng.random(number_of_puzzles) < 0.4

    def make(puzzle: int, number: int) -> Try:
        steps = int(rng.integers(1, 6))
        chances = [0.8, 0.2, 0.0] if hard[puzzle] else [0.6, 0.2, 0.2]
        kinds = rng.choice([WRONG, DETOUR, BEST], size=steps, p=chances)
        costs = np.where(kinds == BEST, 1, rng.integers(2, 5, steps))
        answers = np.stack([kinds, costs, rng.integers(0, 3, steps)], axis=1)
        return Try(answers, float(rng.integers(-4, 4)))

    return tries_of(make, number_of_puzzles, samples)


@pytest.mark.parametrize("choose", ["rules", "auto", "q", "vote", "settled"])
def test_samples_count_as_if_each_had_waited_for_the_one_before(choose: Choose) -> None:
    """A sample that was seated while a slot was empty would decide, or count as compute, though an earlier one had
    ended the search; results would depend on the batch size."""
    rng = np.random.default_rng(0)
    leaves_early = choose in ("rules", "auto")
    for number, samples, rows in ((1, 7, 4), (5, 4, 1), (23, 5, 4), (23, 5, 9), (40, 3, 8), (9, 1, 4)):
        scripts = random_scripts(rng, number, samples)
        answers, row_steps, exact, any_exact = [], [], [], []
        for tries in scripts:
            ended = [one.ended(leaves_early) for one in tries]
            preds = np.array([one.answers[steps - 1] for one, steps in zip(tries, ended, strict=True)])
            q = np.array([one.q for one in tries])
            verdicts = preds[:, 0] != WRONG, preds[:, 0] == BEST, preds[:, 1]
            best, needed = literal_choice(choose, *verdicts, preds, q, np.abs(q))
            answers.append(preds[best])
            row_steps.append(sum(ended[:needed]))
            exact.append(preds[best, 2] == 0)
            any_exact.append((preds[:needed, 2] == 0).any())
        played = play(scripts, rows, choose)
        np.testing.assert_array_equal(played.preds, answers)
        for batch, sums in enumerate(played.sums):
            mine = slice(batch * rows, (batch + 1) * rows)
            expected = {"count": len(answers[mine]), "exact_accuracy": sum(exact[mine])}
            if samples > 1:
                expected |= {"row_steps": sum(row_steps[mine]), "any_exact": sum(any_exact[mine])}
            assert sums == expected
        last = list(played.search.curve.points().values())[-1]
        found = (last["exact"], last["any_exact"], last["row_steps"])
        assert found == pytest.approx((np.mean(exact), np.mean(any_exact), np.mean(row_steps)))


def test_a_verified_answer_ends_the_other_samples_of_its_puzzle() -> None:
    """They would go on for what is solved, in seats that other puzzles need. Until then they wait for one another,
    except where a seat would be empty."""
    # one puzzle, all seats: sample 1 is right after its second step, the others are hopeless
    alone = [[wrong(9), right_after(2, of=9), *[wrong(9)] * 6]]
    played = play(alone, 4, "rules")
    assert len(played.seated) == 9  # the plain sample's steps, which count before those of sample 1
    assert played.seated[0] == {(0, 0), (0, 1), (0, 2), (0, 3)}
    alone = [[right_after(2, of=9), *[wrong(9)] * 7]]
    assert len(play(alone, 4, "rules").seated) == 2

    # two puzzles in four seats, a second sample of each where no third puzzle waits: those of the solved one leave
    solved = [[right_after(2, of=9), *[wrong(9)] * 7], [wrong(4)] * 8]
    assert play(solved, 4, "rules").seated[1:3] == [{(0, 0), (1, 0), (0, 1), (1, 1)}, {(1, n) for n in range(4)}]

    # two puzzles in two seats: none takes a second seat while the other is to be tried
    pair = [[wrong(2), right_after(1, of=9), wrong(9)], [wrong(3), wrong(3), wrong(3)]]
    seated = play(pair, 2, "rules").seated
    assert seated[:3] == [{(0, 0), (1, 0)}, {(0, 0), (1, 0)}, {(0, 1), (1, 0)}]
    assert not any(puzzle == 0 and number == 2 for seats in seated for puzzle, number in seats)


def test_compute_goes_to_the_puzzles_that_need_it() -> None:
    """Seats would be empty, or taken by what is solved: each step of the model costs the same, whatever is in it."""
    rng = np.random.default_rng(1)
    hard = rng.random(400) < 0.1
    scripts = tries_of(lambda puzzle, number: wrong(3) if hard[puzzle] else right_after(1, of=3), 400, 20)
    played = play(scripts, 8, "auto")
    row_steps = sum(sums["row_steps"] for sums in played.sums)
    assert row_steps == hard.sum() * 60 + (~hard).sum()
    assert len(played.seated) <= row_steps / 8 + 3

    scripts = tries_of(lambda puzzle, number: wrong(1 + int(rng.integers(5))), 60, 7)
    played = play(scripts, 8, "vote")
    assert len(played.seated) <= sum(one.steps for tries in scripts for one in tries) / 8 + 5


def test_no_puzzle_starves() -> None:
    """One that is begun is gone on with before new ones: results, and what is held for them, would come at the end."""
    for choose in ("auto", "vote"):
        played = play(tries_of(lambda puzzle, number: wrong(3), 80, 6), 8, choose)
        assert played.most_under_way <= 2
        assert len(played.seated) == 80 * 6 * 3 / 8


@pytest.mark.parametrize("most", [2, 5, slots._MOST_BATCHES])
def test_one_hopeless_puzzle_does_not_let_the_batches_under_way_pile_up(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of all batches behind it would be held in memory, of a test split of hundreds of thousands."""
    monkeypatch.setattr(slots, "_MOST_BATCHES", most)
    scripts = tries_of(lambda puzzle, number: wrong(4) if puzzle == 1 else right_after(1, of=4), 4 * 60, 60)
    played = play(scripts, 4, "auto")
    assert played.most_under_way == most
    assert len(played.sums) == 60
    row_steps = sum(sums["row_steps"] for sums in played.sums)
    assert row_steps == 60 * 4 + 239
    assert len(played.seated) <= row_steps / 4 + 8  # the seats are not empty meanwhile


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """Thousands of samples of a puzzle would need thousands of states, or of logits, at once."""
    data = opened(make_sudoku(tmp_path / "data", [8] * 8))
    arch = {"hidden_size": 128, "halt_max_steps": 2, "puzzle_emb_ndim": 0}
    head = train_state(pretrain_config(arch), data.metadata).head

    def peak(samples: int) -> int:
        thinking = Thinking(samples=samples, noise=0.1, random_init=True, relabel=True, choose="settled")
        evaluator = Evaluator(head, search=Search(thinking, data.metadata))
        run_evaluation(evaluator, data, max_examples=8)  # compiles
        gc.collect()
        mx.clear_cache()
        mx.reset_peak_memory()
        run_evaluation(evaluator, data, max_examples=8)
        return mx.get_peak_memory()

    few, many = peak(4), peak(64)
    assert many < 1.2 * few  # how far two streams overlap moves it by some per cent; a state for each would be 16 times


def test_a_vote_does_not_hold_the_logits_of_the_rows_beside(tmp_path: Path) -> None:
    """Every answer that has got a vote would keep a whole batch of logits in memory, where these are saved."""
    kept: list[np.ndarray] = []
    data = opened(make_sudoku(tmp_path / "data", [8] * 8))

    class Kept(slots.Sample):
        def __init__(self, **values: Any):
            super().__init__(**values)
            kept.extend(array for array in self.outputs.values() if array.ndim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "Sample", Kept)
        search = Search(Thinking(samples=2, noise=0.1, choose="vote"), data.metadata)
        head = train_state(pretrain_config({"halt_max_steps": 2}), data.metadata).head
        writer = PredictionWriter(Path("unused"), ["logits"], 6)
        list(Evaluator(head, search=search).results(data.eval_batches(), writer, lambda: None))
    assert {array.shape for array in kept} == {(16,), (16, 6)}
    assert all(array.base is None for array in kept)
