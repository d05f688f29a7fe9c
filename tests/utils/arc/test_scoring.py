"""ARC scores: what is voted, how candidates rank, when a task counts, and what the user is told."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from common.errors import UserError
from dataset.arc_grids import VOCAB_SIZE, parse_augmentation_name, restore_grid
from dataset.build_arc_dataset import ArcOptions, build
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.arc_data import (
    RIGHT,
    WORSE,
    WRONG,
    ArcFiles,
    Grid,
    Row,
    augmented,
    plain,
    random_augmentation,
    random_grid,
    task,
)
from tests.helpers.arc_source import make_arc
from utils.arc import predictions as arc_predictions
from utils.arc import scoring
from utils.arc.predictions import KEYS, PIECE_ROWS, restored_grids
from utils.arc.scoring import PASS_K, ArcScore, score_predictions
from utils.evaluation.predictions import PredictionWriter

INPUT, OTHER_INPUT = [[1, 0]], [[2, 0, 7]]
EMPTY: Grid = []


def score_rows(tmp_path: Path, tasks: dict[str, Any], *ranks: list[Row]) -> ArcScore:
    files = ArcFiles(tmp_path, tasks)
    folders = [files.predict(rows, rank) for rank, rows in enumerate(ranks)]
    return score_predictions(folders, files.data)


def pass_at(*rates: float) -> dict[int, float]:
    """The rates of the first values of K; the last holds for all others."""
    return {k: rates[min(place, len(rates) - 1)] for place, k in enumerate(PASS_K)}


def votes(score: ArcScore, task_id: str = "a", number: int = 0) -> list[tuple[Grid, int]]:
    return [(c.grid.tolist(), c.votes) for c in score.tasks[task_id].inputs[number].candidates]


def test_perfect_predictions_score_everything(tmp_path: Path) -> None:
    """Every augmentation must be undone, whatever a grid's size and colours."""
    rng = np.random.default_rng(0)
    tests = {f"task_{i}": [(random_grid(rng, 30), random_grid(rng, 30)) for _ in range(i % 3 + 1)] for i in range(20)}
    rows = []
    for task_id, pairs in tests.items():
        for number in range(20):
            k, colours = random_augmentation(rng)
            for input_, output in pairs:
                rows.append(
                    augmented(task_id, k, colours, input_, output) if number else plain(task_id, input_, output)
                )
    score = score_rows(tmp_path, {task_id: task(*pairs) for task_id, pairs in tests.items()}, rows)
    assert score.pass_at == score.pass_at_outputs == pass_at(1.0)
    assert score.notes == []
    assert score.predictions == len(rows)
    for task_score in score.tasks.values():
        for result in task_score.inputs:
            assert [(c.votes, c.mean_q_halt) for c in result.candidates] == [(20, 0.5)]
            assert result.candidates[0].grid.tolist() == result.answer.tolist()


def test_the_labels_of_a_built_data_set_score_everything(tmp_path: Path) -> None:
    """What the builder does to a task, and evaluate.py to its predictions, must be what is undone here."""
    make_arc(tmp_path / "raw", evaluation=5)
    build(ArcOptions(dataset_dirs=[str(tmp_path / "raw")], output_dir=str(tmp_path / "data"), num_aug=30))
    test_set = PuzzleDataset(tmp_path / "data", "test", global_batch_size=64)
    with PredictionWriter(tmp_path / "step_1_all_preds.0", KEYS, VOCAB_SIZE) as writer:
        for batch in test_set.eval_batches():
            labels = mx.array(np.maximum(batch.labels, 0))
            writer.write(batch, {"preds": labels, "q_halt_logits": mx.zeros(len(labels))})
    score = score_predictions([tmp_path / "step_1_all_preds.0"], tmp_path / "data")
    assert (score.pass_at, score.notes) == (pass_at(1.0), [])
    assert score.predictions == test_set.num_examples == 7 * 31
    assert [len(result.candidates) for scored in score.tasks.values() for result in scored.inputs] == [1] * 7


def test_a_wrong_majority_loses_the_first_attempt_and_leaves_the_second(tmp_path: Path) -> None:
    """This is what pass@1 and pass@2 are about: votes rank first, however sure the model is of the others."""
    rng = np.random.default_rng(1)
    rows = [augmented("a", *random_augmentation(rng), INPUT, WRONG, q_halt=-5.0) for _ in range(3)]
    rows += [augmented("a", *random_augmentation(rng), INPUT, RIGHT, q_halt=5.0) for _ in range(2)]
    score = score_rows(tmp_path, {"a": task((INPUT, RIGHT))}, rows)
    assert votes(score) == [(WRONG, 3), (RIGHT, 2)]
    assert score.pass_at == pass_at(0.0, 1.0)
    result = score.tasks["a"].inputs[0]
    assert (result.rank, result.predictions, result.share(result.candidates[0])) == (2, 5, 0.6)
    assert result.candidates[1].mean_q_halt == pytest.approx(1 / (1 + math.exp(-5.0)))


def test_equal_votes_rank_by_mean_halting_probability(tmp_path: Path) -> None:
    """The mean of the probabilities, not of the logits, of which (9, -9) and (1, -0.5) would rank the other way."""
    rows = [
        augmented("a", k, range(10), INPUT, answer, q)
        for k, (answer, q) in enumerate([(WRONG, 9.0), (WRONG, -9.0), (RIGHT, 1.0), (RIGHT, -0.5), (WORSE, 99.0)])
    ]
    score = score_rows(tmp_path, {"a": task((INPUT, RIGHT))}, rows)
    assert [grid for grid, _ in votes(score)] == [RIGHT, WRONG, WORSE]
    assert score.pass_at == pass_at(1.0)


def test_remaining_ties_go_to_the_lowest_identifier_in_any_order_of_rows(tmp_path: Path) -> None:
    """Otherwise a score would depend on how many ranks wrote it."""
    answers = (RIGHT, WRONG, WORSE, WORSE, WRONG, RIGHT)  # twice each; the puzzles are listed in this order
    tied = [augmented("a", k, range(10), INPUT, answer) for k, answer in enumerate(answers)]
    first = [plain("a", INPUT, [[9]])] * 4
    for number, order in enumerate(itertools.islice(itertools.permutations(tied), 0, None, 60)):
        files = ArcFiles(tmp_path / str(number), {"a": task((INPUT, RIGHT))})
        files.names += [row.name for row in [*first[:1], *tied]]
        score = score_predictions([files.predict(first), files.predict(list(order), rank=1)], files.data)
        assert votes(score) == [([[9]], 4), (RIGHT, 2), (WRONG, 2), (WORSE, 2)]
    # One puzzle with several answers, as from two equal test inputs: the smaller grid, then the lower colours.
    grids = [[[1, 2], [3, 4]], [[1, 2, 3]], [[1, 3]], [[1, 2]], [[0, 9]]]
    score = score_rows(tmp_path / "grids", {"a": task((INPUT, RIGHT))}, [plain("a", INPUT, grid) for grid in grids])
    assert [grid for grid, _ in votes(score)] == [[[0, 9]], [[1, 2]], [[1, 3]], [[1, 2, 3]], [[1, 2], [3, 4]]]


def test_a_task_counts_only_if_all_its_test_inputs_are_solved(tmp_path: Path) -> None:
    """Counting outputs instead of tasks gives other numbers than HRM's; both are told, each by its name."""
    tasks = {"a": task((INPUT, RIGHT), (OTHER_INPUT, WORSE)), "b": task((INPUT, RIGHT)), "c": task((INPUT, RIGHT))}
    rows = [
        plain("a", OTHER_INPUT, WORSE),  # in another order than in the task
        plain("a", INPUT, WRONG),
        augmented("a", 6, [0, 2, 1, *range(3, 10)], INPUT, RIGHT, q_halt=-1.0),
        plain("b", INPUT, RIGHT),
        plain("c", INPUT, WRONG),
    ]
    score = score_rows(tmp_path, tasks, rows)
    assert [result.rank for result in score.tasks["a"].inputs] == [2, 1]
    assert [score.tasks["a"].solved(k) for k in (1, 2)] == [False, True]
    assert score.pass_at == pass_at(1 / 3, 2 / 3)
    assert score.pass_at_outputs == pass_at(2 / 4, 3 / 4)


def test_one_of_two_outputs_is_no_task_and_half_the_outputs(tmp_path: Path) -> None:
    """Each convention would pass for the other one, in which the model looks worse or better."""
    rows = [plain("a", INPUT, RIGHT), plain("a", OTHER_INPUT, WRONG)]
    score = score_rows(tmp_path, {"a": task((INPUT, RIGHT), (OTHER_INPUT, WORSE))}, rows)
    assert [result.solved(1) for result in score.tasks["a"].inputs] == [True, False]
    assert (score.pass_at, score.pass_at_outputs) == (pass_at(0.0), pass_at(1 / 2))
    tasks_first = [f"pass@{k}" for k in PASS_K] + [f"pass@{k}_outputs" for k in PASS_K]
    assert list(score.rates().items()) == list(zip(tasks_first, [0.0] * 5 + [0.5] * 5, strict=True))


def test_tasks_without_all_answers_count_in_neither_convention(tmp_path: Path) -> None:
    """An output that nobody can check would count as wrong, and one of a task that is left out as right."""
    tasks = {"a": task((INPUT, RIGHT), (OTHER_INPUT, WORSE)), "b": task((INPUT, RIGHT), (OTHER_INPUT, WORSE))}
    rows = [plain(task_id, INPUT, RIGHT) for task_id in "ab"]
    del tasks["b"]["test"][1]["output"]
    score = score_rows(tmp_path / "one", tasks, rows)
    assert (score.pass_at, score.pass_at_outputs) == (pass_at(0.0), pass_at(1 / 2))
    none = score_rows(tmp_path / "none", {"b": tasks["b"]}, rows[1:])
    assert (none.pass_at, none.pass_at_outputs, none.rates()) == ({}, {}, {})


def test_equal_test_inputs_share_their_predictions(tmp_path: Path) -> None:
    """A model can't tell them apart: their rows can't be told apart either, and none is to be left out.

    Each counts as an output of its own, also where their outputs differ.
    """
    rows = [plain("a", INPUT, RIGHT), plain("a", INPUT, RIGHT)]
    same = score_rows(tmp_path / "same", {"a": task((INPUT, RIGHT), (INPUT, RIGHT))}, rows)
    assert (votes(same, number=0), votes(same, number=1)) == ([(RIGHT, 2)], [(RIGHT, 2)])
    assert (same.pass_at, same.notes) == (pass_at(1.0), [])
    other = score_rows(tmp_path / "other", {"a": task((INPUT, RIGHT), (INPUT, WRONG))}, [*rows, *rows])
    assert (other.pass_at, other.pass_at_outputs) == (pass_at(0.0), pass_at(1 / 2))
    third = score_rows(tmp_path / "third", {"a": task((INPUT, RIGHT), (INPUT, RIGHT), (OTHER_INPUT, WORSE))}, rows)
    assert (third.pass_at, third.pass_at_outputs) == (pass_at(0.0), pass_at(2 / 3))


def test_several_evaluations_of_a_run_vote_together(tmp_path: Path) -> None:
    """As TRM's published figures are counted; whoever mixes evaluations by mistake has to hear of it all the same."""
    files = ArcFiles(tmp_path, {"a": task((INPUT, RIGHT))})
    folders = [files.predict([plain("a", INPUT, grid)], step=step) for step, grid in enumerate((WRONG, RIGHT, RIGHT))]
    assert score_predictions(folders[:1], files.data).pass_at == pass_at(0.0)
    score = score_predictions([files.root / "run" / "step_*_all_preds.*"], files.data)
    assert votes(score) == [(RIGHT, 2), (WRONG, 1)]
    assert score.pass_at == pass_at(1.0)
    assert score.notes == [
        "2 predictions are further votes of the same puzzles: several evaluations vote together, "
        "or the same predictions are there twice"
    ]


def test_a_prediction_without_a_grid_is_a_vote_for_nothing(tmp_path: Path) -> None:
    """As in the PyTorch code it takes a place among the candidates, and is never right."""
    nothing = Row("a_t2_0123456789", plain("a", INPUT, RIGHT).inputs[::-1], np.ones(900))
    board = np.zeros(900, int)
    board[1:5] = 4  # colours, but not at the top left
    rows = [plain("a", INPUT, RIGHT, q_halt=-3.0)]
    for k, preds in ((1, np.zeros(900)), (5, board), (7, np.full(900, 12))):
        rows.append(Row(f"a_t{k}_0123456789", augmented("a", k, range(10), INPUT, RIGHT).inputs, preds))
    score = score_rows(tmp_path, {"a": task((INPUT, RIGHT))}, [*rows, nothing])
    assert votes(score) == [(EMPTY, 3), (RIGHT, 1)]
    assert score.pass_at == pass_at(0.0, 1.0)


def test_halting_logits_may_be_anything(tmp_path: Path) -> None:
    """A model that diverged, or is very sure, would end the scoring with a warning, or rank its answers first."""
    answers = {0.0: WRONG, math.nan: WORSE, math.inf: RIGHT, -math.inf: [[6]], -1e30: [[7]], 1e30: [[8]]}
    rows = [augmented("a", k, range(10), INPUT, grid, q) for k, (q, grid) in enumerate(answers.items())]
    score = score_rows(tmp_path, {"a": task((INPUT, RIGHT))}, rows)
    means = {json.dumps(c.grid.tolist()): c.mean_q_halt for c in score.tasks["a"].inputs[0].candidates}
    assert means == {"[[1, 2], [3, 4]]": 1.0, "[[8]]": 1.0, "[[1, 2]]": 0.5, "[[5]]": 0.0, "[[6]]": 0.0, "[[7]]": 0.0}


def test_what_does_not_fit_is_left_out_and_reported(tmp_path: Path) -> None:
    """A score over half the predictions looks like a bad model."""
    padding = Row("<blank>", np.zeros(900), np.zeros(900))
    rows = [
        padding,
        plain("a", INPUT, RIGHT),
        plain("a", OTHER_INPUT, RIGHT),
        plain("b", INPUT, RIGHT),
        augmented("b", 3, range(10), INPUT, RIGHT),
        Row("a_t0_0123456789", np.zeros(900), np.zeros(900)),
        padding,
    ]
    score = score_rows(tmp_path, {"a": task((INPUT, RIGHT)), "c": task((INPUT, RIGHT))}, rows)
    assert score.predictions == 1
    assert score.pass_at == pass_at(0.5)
    assert score.notes == [
        "2 predictions left out: they belong to no task of test_puzzles.json",
        "2 predictions left out: their inputs are no test inputs of their tasks",
        "1 tasks lack predictions and count as unsolved, such as c",
    ]
    assert score.tasks["c"].inputs[0].candidates == []


# ---------------------------------------------------------------------------------------------------- slow and literal


def crop(board: np.ndarray) -> np.ndarray:
    """The largest rectangle of colours at the top left, the flattest of several, by trying all of them."""
    best = np.zeros((0, 0), int)
    for rows in range(1, 31):
        for cols in range(1, 31):
            piece = board.reshape(30, 30)[:rows, :cols]
            if not ((piece >= 2) & (piece <= 11)).all():
                break
            if piece.size > best.size:
                best = piece
    return best.astype(int) - 2


def literal_score(
    tasks: dict[str, Any], rows: list[Row], names: list[str]
) -> tuple[dict[int, float], dict[int, float], dict[str, Any]]:
    """The rules, one prediction at a time: pass@K over tasks and over outputs, and per task and test input the ranked
    grids with votes and q."""
    found: dict[tuple[str, str], dict[str, list[tuple[float, int]]]] = {}
    for row in rows:
        if row.name == "<blank>":
            continue
        task_id, k, colours = parse_augmentation_name(row.name)
        input_, answer = (
            json.dumps(restore_grid(crop(board), k, colours).tolist()) for board in (row.inputs, row.preds)
        )
        q = 1 / (1 + math.exp(-float(np.float32(row.q_halt))))
        found.setdefault((task_id, input_), {}).setdefault(answer, []).append((q, names.index(row.name)))
    right_tasks, right_outputs = dict.fromkeys(PASS_K, 0), dict.fromkeys(PASS_K, 0)
    num_tasks = num_outputs = 0
    ranking: dict[str, list[Any]] = {}
    for task_id, raw in tasks.items():
        ranking[task_id] = []
        for pair in raw["test"]:
            candidates = found.get((task_id, json.dumps(pair["input"])), {})
            ranked = sorted(
                candidates.items(),
                key=lambda item: (
                    -len(item[1]),
                    -math.fsum(q for q, _ in item[1]),
                    min(identifier for _, identifier in item[1]),
                    len(json.loads(item[0])),
                    len((json.loads(item[0]) or [[]])[0]),
                    json.loads(item[0]),
                ),
            )
            ranking[task_id].append(
                [(json.loads(grid), len(who), math.fsum(q for q, _ in who) / len(who)) for grid, who in ranked]
            )
        if any("output" not in pair for pair in raw["test"]):
            continue
        num_tasks += 1
        num_outputs += len(raw["test"])
        for k in PASS_K:
            right = 0
            for pair, ranked in zip(raw["test"], ranking[task_id], strict=True):
                if pair["output"] in [grid for grid, _, _ in ranked[:k]]:
                    right += 1
            right_outputs[k] += right
            if right == len(raw["test"]):
                right_tasks[k] += 1
    if num_tasks == 0:
        return {}, {}, ranking
    over_tasks = {k: right / num_tasks for k, right in right_tasks.items()}
    return over_tasks, {k: right / num_outputs for k, right in right_outputs.items()}, ranking


def random_case(rng: np.random.Generator) -> tuple[dict[str, Any], list[Row]]:
    """Tasks with one to three test inputs, some equal, and few different answers to them, so that many tie.

    The output of some test inputs is not known.
    """
    logits = np.array([-1.25, 0.25, 0.5, 2.0])
    tasks, rows = {}, []
    for number in range(rng.integers(1, 5)):
        task_id = f"t{number}_x"
        inputs = [random_grid(rng) for _ in range(rng.integers(1, 4))]
        tests = [(inputs[rng.integers(len(inputs))], random_grid(rng, 2)) for _ in inputs]
        tasks[task_id] = task(*tests)
        for _ in range(rng.integers(0, 12)):
            k, colours = random_augmentation(rng)
            wrong = random_grid(rng, 2)
            for input_, output in tests:
                answer = output if rng.random() < 0.4 else wrong if rng.random() < 0.5 else random_grid(rng, 2)
                row = augmented(task_id, k, colours, input_, answer, float(rng.choice(logits)))
                if rng.random() < 0.3:  # a few tokens wrong
                    noise = rng.random(900) < rng.choice([0.003, 0.3])
                    row = Row(row.name, row.inputs, np.where(noise, rng.integers(12, size=900), row.preds), row.q_halt)
                rows.append(row)
        if rng.random() < 0.2:
            del tasks[task_id]["test"][rng.integers(len(tests))]["output"]
    rows += [Row("<blank>", np.zeros(900), np.zeros(900)), plain("elsewhere", [[1]], [[1]])]
    rows += [Row(next(iter(tasks)), np.zeros(900), np.zeros(900))]
    return tasks, rows


@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_the_rules_taken_literally(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where pieces end within a task, and whichever rank wrote a row."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(arc_predictions, "PIECE_ROWS", int(rng.integers(1, 40)))
    tasks, rows = random_case(rng)
    files = ArcFiles(tmp_path, tasks)
    order = rng.permutation(len(rows))
    parts = np.array_split(order, rng.integers(1, 4))
    files.names += list(dict.fromkeys(row.name for row in rows if row.name != "<blank>"))
    score = score_predictions([files.predict([rows[i] for i in p], rank) for rank, p in enumerate(parts)], files.data)

    over_tasks, over_outputs, ranking = literal_score(tasks, rows, files.names)
    assert score.pass_at == pytest.approx(over_tasks)
    assert score.pass_at_outputs == pytest.approx(over_outputs)
    for task_id, results in ranking.items():
        for result, expected in zip(score.tasks[task_id].inputs, results, strict=True):
            assert [(c.grid.tolist(), c.votes) for c in result.candidates] == [(grid, n) for grid, n, _ in expected]
            assert [c.mean_q_halt for c in result.candidates] == pytest.approx([q for _, _, q in expected], abs=1e-9)

    whole = ArcFiles(tmp_path / "one", tasks)
    whole.names = files.names
    assert score_predictions([whole.predict(rows)], whole.data) == ScoreLike(score)


class ScoreLike:
    """Equal to a score of the same numbers; arrays have no plain equality."""

    def __init__(self, score: ArcScore):
        self.numbers = self._numbers(score)

    @staticmethod
    def _numbers(score: ArcScore) -> Any:
        ranked = {
            task_id: [(result.candidates, result.rank) for result in scored.inputs]
            for task_id, scored in score.tasks.items()
        }
        return score.rates(), score.predictions, score.notes, ranked

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArcScore) and self._numbers(other) == self.numbers


def test_thousands_of_augmentations_are_mapped_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full ARC-1 evaluation has 420,000 rows, twenty times as many: minutes if each were looked at alone."""
    rng = np.random.default_rng(0)
    pairs = [(random_grid(rng, 20), random_grid(rng, 20)) for _ in range(20)]
    files = ArcFiles(tmp_path, {f"t{i}": task(pair) for i, pair in enumerate(pairs)})
    some = [augmented(f"t{i}", *random_augmentation(rng), *pair) for i, pair in enumerate(pairs) for _ in range(50)]
    folder = files.predict(some)
    for path in folder.iterdir():
        np.save(path, np.concatenate([np.load(path)] * 20))
    calls: list[int] = []

    def counted(tokens: np.ndarray, *augmentation: np.ndarray) -> list[bytes]:
        calls.append(len(tokens))
        return restored_grids(tokens, *augmentation)

    monkeypatch.setattr(scoring, "restored_grids", counted)
    score = score_predictions([folder], files.data)
    assert sum(calls) == 2 * 20_000  # inputs and answers
    assert len(calls) == 2 * math.ceil(20_000 / PIECE_ROWS)
    assert score.predictions == 20_000
    assert score.pass_at == pass_at(1.0)


# ---------------------------------------------------------------------------------------------------- the data set


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("test_puzzles.json", None, "test_puzzles.json is missing; data_path must be an ARC data set"),
        ("test_puzzles.json", "{", "test_puzzles.json is not JSON"),
        ("test_puzzles.json", "\xff", "test_puzzles.json is not JSON"),
        ("test_puzzles.json", "{}", "test_puzzles.json holds no tasks"),
        ("test_puzzles.json", "[]", "test_puzzles.json holds no tasks"),
        ("test_puzzles.json", '{"a": []}', "test_puzzles.json: task a holds a list of 0"),
        ("test_puzzles.json", json.dumps({"a": task(([[1]], [[1]]), ([[10]], [[1]]))}), "a: test pair 2: row 1 of the"),
        ("identifiers.json", None, "identifiers.json is missing; data_path must be an ARC data set"),
        ("identifiers.json", "{}", "identifiers.json holds no list of puzzle names"),
        ("identifiers.json", "[1]", "identifiers.json holds no list of puzzle names"),
        ("identifiers.json", '["<blank>"]', "identifier 1, expected 0 to 0"),
    ],
)
def test_what_is_no_arc_data_set_is_refused(tmp_path: Path, name: str, content: str | None, complaint: str) -> None:
    """In one line that names the file, and the task where there is one."""
    files = ArcFiles(tmp_path, {"a": task((INPUT, RIGHT))})
    folder = files.predict([plain("a", INPUT, RIGHT)])
    path = files.data / name
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises((UserError, UserError)) as error:
        score_predictions([folder], files.data)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
    assert str(files.data) in str(error.value)
