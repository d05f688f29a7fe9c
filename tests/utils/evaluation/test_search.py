"""Thinking longer: without its keys nothing changes; with them the results follow from seed and puzzle alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
import pretrain
from common.errors import UserError
from dataset.metadata import ExampleField
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.configs import pretrain_config, sizes
from tests.helpers.thinking import (
    MAX_STEPS,
    OUTPUTS,
    Thought,
    all_rows,
    literal_steps,
    make_mazes,
    make_sudoku,
    opened,
    random_hrm,
    solver,
    think,
    write_dataset,
)
from tests.helpers.tiny_data import train_arguments
from utils.config import check_outputs
from utils.evaluation import slots
from utils.evaluation.evaluate import Evaluator
from utils.evaluation.evaluate import evaluate as run_evaluation
from utils.evaluation.judges import Sample
from utils.evaluation.predictions import PredictionWriter
from utils.evaluation.search import Search
from utils.evaluation.thinking import Choose, Thinking
from utils.ranks.ranks import Ranks

BLANKS = [4, 7, 8, 9, 10, 10, 11, 11, 12, 12, 13]
CHOICES: list[Choose] = ["auto", "rules", "q", "vote", "settled"]
ALL_WAYS: list[dict[str, Any]] = [
    {"noise": 0.25},
    {"random_init": True},
    {"relabel": True},
    {"noise": 0.2, "random_init": True, "relabel": True},
]


@pytest.fixture
def sudoku(tmp_path: Path) -> PuzzleDataset:
    """11 puzzles in batches of 8."""
    return opened(make_sudoku(tmp_path / "sudoku", BLANKS))


def without_search(data: PuzzleDataset, folder: Path, halt: Any) -> Thought:
    """A plain evaluation, by an evaluator that knows of no search."""
    with PredictionWriter(folder / "plain", OUTPUTS, data.metadata.vocab_size) as writer:
        result = run_evaluation(Evaluator(random_hrm(data.metadata), halt), data, writer=writer)
    return Thought(result, {path.stem: np.load(path) for path in (folder / "plain").iterdir()}, 0)


def assert_same_files(found: Thought, expected: Thought) -> None:
    assert found.files.keys() >= expected.files.keys()
    for name, array in expected.files.items():
        np.testing.assert_array_equal(found.files[name], array, err_msg=name)


@pytest.mark.parametrize("halt", ["max", "q"])
def test_without_its_keys_an_evaluation_is_what_it_was(halt: str, sudoku: PuzzleDataset, tmp_path: Path) -> None:
    """Numbers of before would not be comparable any more, bit for bit. A judge alone has nothing to choose from."""
    expected = without_search(sudoku, tmp_path, halt)
    for choose in CHOICES:
        found = think(sudoku, tmp_path, random_hrm(sudoku.metadata), halt=halt, keep=False, choose=choose)
        assert found.metrics == expected.metrics
        assert found.files.keys() == expected.files.keys()
        assert_same_files(found, expected)


def test_as_many_steps_as_trained_give_the_plain_evaluation(sudoku: PuzzleDataset, tmp_path: Path) -> None:
    """In slots, one row after the other; with as many steps for each, the answers are the same."""
    expected = without_search(sudoku, tmp_path, "max")
    ways: list[dict[str, Any]] = [{"max_steps": MAX_STEPS}, {"max_steps": MAX_STEPS, "samples": 2, "noise": 1e-30}]
    for thinking in ways:
        found = think(sudoku, tmp_path, random_hrm(sudoku.metadata), keep=False, choose="q", **thinking)
        np.testing.assert_array_equal(found.files["preds"], expected.files["preds"])
        for name in ("logits", "q_halt_logits"):
            np.testing.assert_allclose(found.files[name], expected.files[name], rtol=0, atol=1e-5)
        for name, value in expected.metrics.items():
            if name != "eval/q_halt_loss":  # padding rows are in the plain one
                assert found.metrics[name] == pytest.approx(value, rel=1e-5), name
        assert found.metrics["eval/row_steps"] == MAX_STEPS * thinking.get("samples", 1)
        assert found.metrics["eval/any_exact"] == expected.metrics["eval/exact_accuracy"]


@pytest.mark.parametrize("steps", [1, MAX_STEPS - 2, MAX_STEPS + 7])
def test_more_steps_go_on_where_training_ended(steps: int, sudoku: PuzzleDataset, tmp_path: Path) -> None:
    """The states would begin anew at the trained number of steps, or the row would end there. Fewer end it earlier."""
    head, arrays = random_hrm(sudoku.metadata), all_rows(sudoku)
    *_, last = literal_steps(head, arrays, steps)
    found = think(sudoku, tmp_path, head, max_steps=steps, choose="q")
    np.testing.assert_array_equal(found.files["preds"], last["preds"])
    np.testing.assert_allclose(found.files["logits"], last["logits"], rtol=0, atol=1e-4)
    assert found.metrics["eval/steps"] == found.metrics["eval/row_steps"] == steps
    assert found.metrics["eval/exact_accuracy"] == pytest.approx(last["exact_accuracy"].mean())


def test_with_halting_by_q_max_steps_is_the_end_of_those_that_do_not_halt(tmp_path: Path) -> None:
    """A row that the model has finished would go on, or one that never halts would go on for ever."""
    data = opened(make_sudoku(tmp_path / "sudoku", [4, 8, 10, 12]))
    head, arrays = solver(data.metadata), all_rows(data)
    halts = np.stack([step["halts"] for step in literal_steps(head, arrays, 9)])
    expected = np.where(halts.any(axis=0), halts.argmax(axis=0) + 1, 9)
    assert len(set(expected)) > 2
    found = think(data, tmp_path, head, halt="q", max_steps=9, choose="q")
    np.testing.assert_array_equal(found.files["sample_steps"][:, 0], expected)


@pytest.mark.parametrize("kind", ["2x2", "2x3", "maze"])
def test_a_model_that_treats_copies_alike_answers_them_alike(kind: str, tmp_path: Path) -> None:
    """Answers to copies would come back to wrong places, or as other digits, and no vote could be of use."""
    if kind == "maze":
        data = opened(make_mazes(tmp_path / "data", 8))
    else:
        blanks = {"2x2": [4, 8, 10, 12], "2x3": [6, 15, 22, 28]}[kind]
        data = opened(make_sudoku(tmp_path / "data", blanks, box=(2, int(kind[-1]))))
    steps = 6
    found = think(data, tmp_path, samples=8, relabel=True, max_steps=steps, choose="vote").files
    *_, last = literal_steps(solver(data.metadata), all_rows(data), steps)
    for number in range(8):
        np.testing.assert_array_equal(found["sample_preds"][:, number], last["preds"])
        np.testing.assert_array_equal(found["sample_q_halt_logits"][:, number], last["q_halt_logits"])
    assert 0 < last["exact_accuracy"].mean() < 1
    (batch,) = data.eval_batches()
    search = Search(Thinking(samples=8, relabel=True), data.metadata)
    copies = {bytes(search.sample(batch, 0, number)[0]["inputs"]) for number in range(8)}
    assert len(copies) > 3, "or the model would have been asked the same thing all the time"


@pytest.mark.parametrize("ways", ALL_WAYS, ids=lambda ways: "+".join(ways))
def test_the_first_sample_is_the_plain_one(ways: dict[str, Any], sudoku: PuzzleDataset, tmp_path: Path) -> None:
    """More samples could find less than one; the curve would not begin where a plain evaluation is."""
    plain = think(sudoku, tmp_path).files
    found = think(sudoku, tmp_path, samples=3, choose="vote", **ways).files
    for name in ("sample_preds", "sample_q_halt_logits", "sample_movement", "sample_steps"):
        np.testing.assert_array_equal(found[name][:, 0], plain[name][:, 0], err_msg=name)
    differs = (found["sample_movement"] != found["sample_movement"][:, :1]).any(axis=0)
    assert differs.tolist() == [False, "relabel" not in ways or len(ways) > 1, "relabel" not in ways or len(ways) > 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ways", "choose"),
    [(ALL_WAYS[0], "auto"), (ALL_WAYS[-1], "auto"), (ALL_WAYS[-1], "q")],
    ids=["noise", "all", "all-q"],
)
def test_results_depend_on_the_seed_alone(
    ways: dict[str, Any], choose: str, sudoku: PuzzleDataset, tmp_path: Path
) -> None:
    """Another batch size, order of the puzzles or number of ranks would change what is reported.

    The solver's numbers are whole, and what noise makes of them is rounded at each step: with the same draws, the same
    bits. Of a network's float32 sums, whose order depends on the batch, this would hold only up to rounding.
    """
    thinking = {"samples": 5, "choose": choose, **ways}
    expected = think(sudoku, tmp_path, **thinking)
    arrays = all_rows(sudoku)
    for batch in (1, 3, 11):
        found = think(opened(sudoku.path, batch), tmp_path, **thinking)
        assert_same_files(found, expected)
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)
        np.testing.assert_array_equal(found.result.curve.changes, expected.result.curve.changes)

    order = np.random.default_rng(0).permutation(len(BLANKS))
    tokens = arrays["inputs"][order], arrays["labels"][order]
    shuffled = opened(write_dataset(tmp_path / "shuffled", *tokens, 6, kind="sudoku", box=(2, 2)), 4)
    found = think(shuffled, tmp_path, **thinking)
    for name, array in expected.files.items():
        np.testing.assert_array_equal(found.files[name], array[order], err_msg=name)
    np.testing.assert_array_equal(found.result.curve.changes, expected.result.curve.changes)

    shares = [think(opened(sudoku.path, 4, rank=rank, num_ranks=2), tmp_path, **thinking) for rank in range(2)]
    together = np.sum([share.result.curve.changes for share in shares], axis=0)
    np.testing.assert_array_equal(together, expected.result.curve.changes)


def test_another_seed_gives_other_samples(sudoku: PuzzleDataset, tmp_path: Path) -> None:
    """A second evaluation would be no independent one. The plain sample is that of every seed."""
    found = [think(sudoku, tmp_path, samples=4, noise=0.25, choose="q", seed=seed).files for seed in (0, 0, 1)]
    movements = [files["sample_movement"] for files in found]
    np.testing.assert_array_equal(movements[0], movements[1])
    np.testing.assert_array_equal(movements[0][:, 0], movements[2][:, 0])
    assert (movements[0][:, 1:] != movements[2][:, 1:]).any(axis=0).all()


def test_more_samples_begin_with_the_fewer(sudoku: PuzzleDataset, tmp_path: Path) -> None:
    """What a sample draws would depend on how many there are, and the curve would not say what fewer find."""
    few, many = (
        think(sudoku, tmp_path, samples=samples, noise=0.25, relabel=True, choose="vote").files for samples in (3, 7)
    )
    for name in ("sample_preds", "sample_movement"):
        np.testing.assert_array_equal(many[name][:, :3], few[name])


def test_a_puzzle_without_labels_counts_nowhere(tmp_path: Path) -> None:
    """As a test split without answers has them: it is solved all the same, and its answer is saved."""
    data = opened(make_sudoku(tmp_path / "sudoku", [4, 10, 4]))
    arrays = all_rows(data)
    labels = np.where(np.arange(3)[:, None] == 2, 0, arrays["labels"])
    unlabelled = opened(write_dataset(tmp_path / "unlabelled", arrays["inputs"], labels, 6, kind="sudoku", box=(2, 2)))
    thinking: dict[str, Any] = {"samples": 2, "noise": 0.2}
    expected, found = (think(split, tmp_path, **thinking) for split in (data, unlabelled))
    np.testing.assert_array_equal(found.files["preds"], expected.files["preds"])
    of_two = expected.files["sample_steps"][:2].sum() / 2
    assert found.metrics["eval/row_steps"] == of_two


def test_the_curve_counts_what_the_metrics_count(tmp_path: Path) -> None:
    """Beside an exact accuracy of the labelled puzzles the table would have one of all."""
    arrays = all_rows(opened(make_sudoku(tmp_path / "sudoku", [4, 10, 4])))
    labels = np.where(np.arange(3)[:, None] == 2, 0, arrays["labels"])
    data = opened(write_dataset(tmp_path / "unlabelled", arrays["inputs"], labels, 6, kind="sudoku", box=(2, 2)))
    found = think(data, tmp_path, samples=2, noise=0.2)
    assert found.result.curve is not None
    point = found.result.curve.points()[2]
    for name, metric in (("exact", "exact_accuracy"), ("row_steps", "row_steps"), ("any_exact", "any_exact")):
        assert point[name] == pytest.approx(found.metrics[f"eval/{metric}"])


def test_a_rank_that_waits_for_another_s_hard_puzzles_does_not_hang(sudoku: PuzzleDataset) -> None:
    """Its watchdog would end it while the other still works, and with it the whole run."""

    class Resting(Ranks):
        rests = 0

        def rest(self) -> None:
            self.rests += 1

    for samples, rests in ((1, 0), (2, 1)):
        ranks = Resting()
        thinking = Thinking(samples=samples, noise=0.1 * (samples > 1), max_steps=3)
        evaluator = Evaluator(solver(sudoku.metadata), search=Search(thinking, sudoku.metadata))
        run_evaluation(evaluator, sudoku, ranks=ranks)
        assert ranks.rests == rests


def test_an_evaluator_that_is_used_again_counts_anew(sudoku: PuzzleDataset) -> None:
    """Each evaluation of a run would add to the curve, or to the samples, of the one before."""
    evaluator = Evaluator(solver(sudoku.metadata), search=Search(Thinking(samples=3, noise=0.25), sudoku.metadata))
    first, second = (run_evaluation(evaluator, sudoku, max_examples=number) for number in (11, 11))
    assert second.metrics == first.metrics
    assert second.curve.points() == first.curve.points()
    assert run_evaluation(evaluator, sudoku, max_examples=1).curve.points()[3]["exact"] == 1.0  # the easy one


def test_the_film_of_a_sample_shows_every_step_on_the_puzzle_s_board(
    sudoku: PuzzleDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer would show the steps of a copy, or of another puzzle that sat there before."""
    samples: list[Sample] = []

    def kept(**values: Any) -> Sample:
        samples.append(Sample(**values))
        return samples[-1]

    monkeypatch.setattr(slots, "Sample", kept)
    head = solver(sudoku.metadata)
    search = Search(Thinking(samples=3, relabel=True, choose="vote"), sudoku.metadata, film=True)
    run_evaluation(Evaluator(head, search=search), sudoku)
    steps = list(literal_steps(head, all_rows(sudoku), MAX_STEPS))

    def answer_of(preds: np.ndarray) -> bytes:
        return bytes(preds.astype(np.uint8))

    def of_row(step: dict[str, np.ndarray], row: int) -> tuple[float, bool]:
        return float(step["q_halt_logits"][row]), bool(step["halts"][row])

    films = {tuple((answer_of(step["preds"][row]), *of_row(step, row)) for step in steps) for row in range(len(BLANKS))}
    found = [tuple((answer_of(preds), q, halts) for preds, q, halts in sample.film) for sample in samples]
    assert len(found) == 3 * len(BLANKS)
    assert set(found) == films


@pytest.mark.slow
def test_pretrain_logs_the_samples_that_evaluate_takes(tmp_path: Path, call_script: Callable[..., Any]) -> None:
    """A training curve would promise what the checkpoint does not do; the seed is the run's. Only the blanks are
    scored, so that a model that has learnt nothing is right now and then."""
    make_sudoku(tmp_path / "whole", [2] * 64)
    arrays = all_rows(opened(tmp_path / "whole"))
    labels = np.where(arrays["inputs"] == 1, arrays["labels"], 0)
    data = write_dataset(tmp_path / "data", arrays["inputs"], labels, 6, kind="sudoku", box=(2, 2))
    ways = {"samples": 3, "noise": 0.1, "random_init": True, "choose": "q"}
    run = ("epochs=1", "eval_halt=q", "lr=2e-2", "arch.halt_exploration_prob=0.5", "seed=5")
    keys = [f"eval_{name}={value}" for name, value in ways.items()]
    status, _, err = call_script(pretrain, *train_arguments(data, tmp_path / "run", *run, *keys))
    assert status == 0, err
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    keys = [f"checkpoint={tmp_path / 'run'}", "eval_halt=q", "eval_batch_size=5"]
    keys += [f"{name}={value}" for name, value in ways.items()]
    records = []
    for seed in (5, 6):
        status, out, err = call_script(evaluate, *keys, f"seed={seed}", "save_outputs=[]")
        assert status == 0, err
        records.append(json.loads(out.splitlines()[-1]))
    for name in ("any_exact", "row_steps", "exact_accuracy", "steps", "lm_loss", "q_halt_loss"):
        assert records[0][f"eval/{name}"] == pytest.approx(logged[f"eval/{name}"], rel=1e-5), name
    assert logged["eval/exact_accuracy"] < logged["eval/any_exact"] < 1
    assert 3 < logged["eval/row_steps"] < 9
    assert records[1]["curve"] != records[0]["curve"], "or the seed is not used"


# --------------------------------------------------------------------------------------------------------- mistakes


def complaint(call: Callable[..., Any], *arguments: Any, **keys: Any) -> str:
    with pytest.raises((UserError, ValueError)) as error:
        call(*arguments, **keys)
    return str(error.value)


def test_rules_need_puzzles_that_have_some() -> None:
    """No answer would ever be verified, and every one be the plain sample's."""
    for prefix in ("", "eval_"):
        told = complaint(Search, Thinking(choose="rules"), sizes(), prefix=prefix)
        assert f"{prefix}choose = 'rules'" in told
        assert f"use {prefix}choose=q" in told
    assert not Search(Thinking(choose="auto"), sizes()).leaves_early


def test_copies_need_known_symmetries() -> None:
    """A copy of anything else would be another puzzle."""
    thinking = Thinking(samples=2, relabel=True)
    text = sizes(seq_len=7, vocab_size=30).model_copy(update={"kind": "text"})
    assert "the kind text, whose symmetries aren't known" in complaint(Search, thinking, text)
    fields = {"weight": ExampleField(shape=(16,), dtype="float32")}
    for prefix in ("", "eval_"):
        told = complaint(Search, thinking, sizes().model_copy(update={"fields": fields}), prefix=prefix)
        assert told.startswith(f"{prefix}relabel can't tell")
        assert "weight" in told


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"samples": 3}, "{0}samples = 3 would be the same try 3 times; give {0}noise, {0}random_init or {0}relabel"),
        ({"noise": 0.1}, "{0}noise is for further tries, and the first one is the plain one; give {0}samples=2"),
        ({"random_init": True}, "{0}random_init is for further tries"),
        ({"relabel": True, "max_steps": 20}, "{0}relabel is for further tries"),
    ],
)
def test_samples_and_what_makes_them_differ_need_each_other(keys: dict[str, Any], expected: str) -> None:
    """Compute would go into the same answer again and again; or a key would silently do nothing."""
    assert expected.format("") in complaint(Thinking, **keys)
    ours = {f"eval_{name}": value for name, value in keys.items()}
    told = complaint(pretrain_config, **ours)
    assert expected.format("eval_") in told
    assert "\n" not in told


@pytest.mark.slow
def test_pretrain_tells_its_own_keys_in_one_line(tmp_path: Path, call_script: Callable[..., Any]) -> None:
    """A user who corrects a key of evaluate.py there would be told that there is none. No run is begun before."""
    data = make_sudoku(tmp_path / "data", [4] * 8)
    for split in ("train", "test"):
        path = data / split / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "riddle"}))
    for keys, expected in (
        (["eval_samples=2"], "eval_samples = 2 would be the same try 2 times; give eval_noise, eval_random_init"),
        (["eval_noise=0.1"], "eval_noise is for further tries"),
        (["eval_max_steps=9", "eval_save_outputs=[step_preds]"], "with eval_samples or eval_max_steps examples take"),
        (["eval_choose=rules"], "eval_choose = 'rules' needs puzzles whose answers can be verified"),
        (["eval_samples=2", "eval_relabel=True"], "names the kind riddle, whose symmetries aren't known"),
        (["eval_choose=best"], "eval_choose"),
    ):
        status, out, err = call_script(pretrain, *train_arguments(data, tmp_path / "run", *keys))
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert expected in err
        assert not (tmp_path / "run").exists()


def test_outputs_that_do_not_exist_are_refused_by_the_names_of_the_keys() -> None:
    """Step predictions of different lengths, or logits of other tokens, would be written as if they were comparable."""
    samples = {"samples": 2, "noise": 0.1}
    for keys, output, expected in (
        (
            samples,
            "step_preds",
            "{0}save_outputs has step_preds, the predictions after every outer step, but with {0}samples",
        ),
        ({"max_steps": 9}, "step_preds", "with {0}samples or {0}max_steps examples take"),
        ({"samples": 2, "relabel": True}, "logits", "{0}save_outputs has logits, but with {0}relabel"),
    ):
        told = complaint(check_outputs, Thinking(**keys), "max", [output])
        assert expected.format("") in told
        ours = {f"eval_{name}": value for name, value in keys.items()}
        told = complaint(pretrain_config, **ours, eval_save_outputs=[output])
        assert expected.format("eval_") in told
        assert "\n" not in told
    told = complaint(pretrain_config, eval_halt="q", eval_save_outputs=["step_preds"])
    assert "use eval_halt=max" in told
