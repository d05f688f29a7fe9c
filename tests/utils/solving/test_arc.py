"""ARC tasks: those that a model knows by their own embeddings, others by the mean or after training on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import solve
from common.errors import UserError
from dataset.arc_grids import restore_grid, tokens_to_grid
from dataset.arc_tasks import Task, parse_task
from dataset.build_arc_dataset import ArcOptions, build
from dataset.dataset_files import read_metadata
from models.losses import ACTLossHead
from tests.helpers.arc_grids import augment_grid, grid_to_tokens
from tests.helpers.arc_source import RawTask, make_arc, random_task, write_task
from tests.helpers.solving import ARC, TINY_ARC_ARCH, write_model
from utils.arc.scoring import TaskScore
from utils.arc.submission import attempts
from utils.evaluation.thinking import Thinking
from utils.solving.arc import Adaptation, ArcSolver
from utils.solving.solver import Solver, load

Run = Callable[..., tuple[int, str, str]]

TABLE = "model.inner.puzzle_emb.weights"
COPIES = 2


@dataclass(frozen=True)
class Trained:
    """A checkpoint, the data set of its training with the names of its puzzles, and the tasks in that."""

    checkpoint: Path
    data: Path
    names: list[str]
    tasks: dict[str, RawTask]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("arc")
    tasks = make_arc(folder / "raw", training=1, evaluation=2)
    build(ArcOptions(dataset_dirs=[str(folder / "raw")], output_dir=str(folder / "data"), num_aug=COPIES))
    metadata = read_metadata(folder / "data", "test")
    checkpoint = write_model(folder / "run", metadata, TINY_ARC_ARCH, data_path=folder / "data")
    names = json.loads((folder / "data" / "identifiers.json").read_text())
    assert len(names) == metadata.num_puzzle_identifiers == 1 + 3 * (1 + COPIES)
    return Trained(checkpoint, folder / "data", names, tasks)


@pytest.fixture
def run_here(call_script: Run) -> Run:
    """Call solve.py in this process; returns (exit status, stdout, stderr)."""
    return partial(call_script, solve)


def parsed(name: str, raw: RawTask) -> Task:
    return parse_task(name, name, raw, is_evaluation=True, allow_unsolved=True)


def weights(head: ACTLossHead) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in dict(tree_flatten(head.parameters())).items()}


def solved(arc: ArcSolver, *tasks: Task, **options: Any) -> list[TaskScore]:
    return list(arc.solve_all(tasks, Thinking(), **options))


def candidates(score: TaskScore) -> list[list[tuple[list[list[int]], int]]]:
    return [[(candidate.grid.tolist(), candidate.votes) for candidate in test.candidates] for test in score.inputs]


def slow_votes(
    solver: Solver, raw: RawTask, copies: list[tuple[int, np.ndarray, int]]
) -> list[list[tuple[list[list[int]], int]]]:
    """The candidates for each test input, best first, of copies (transform, colours, identifier), one by one."""
    ranked = []
    for pair in raw["test"]:
        votes: Counter[str] = Counter()
        sure: Counter[str] = Counter()
        for k, colours, identifier in copies:
            board = grid_to_tokens(augment_grid(np.array(pair["input"], np.uint8), k, colours))
            (found,) = solver.think(board[None].astype(np.int32), np.array([identifier]), Thinking())
            best = found.judge.best
            answer = json.dumps(restore_grid(tokens_to_grid(best.preds), k, colours).tolist())
            votes[answer] += 1
            sure[answer] += 1 / (1 + np.exp(-best.q_halt))
        # Of equals, what was said first: dictionaries keep their order, and sorting does too
        order = sorted(votes, key=lambda answer: (-votes[answer], -sure[answer] / votes[answer]))
        ranked.append([(json.loads(answer), votes[answer]) for answer in order])
    return ranked


# ---------------------------------------------------------------------------------------------------- known tasks


def test_a_known_task_has_its_own_embeddings_and_its_copies_vote(trained: Trained) -> None:
    """A model would answer with the embedding of another task, or votes be counted in turned or recoloured grids."""
    solver = load(trained.checkpoint)
    arc = ArcSolver(solver, Adaptation())
    for task_id, raw in trained.tasks.items():
        task = parsed(task_id, raw)
        assert arc.knows(task)
        copies = []
        for identifier, name in enumerate(trained.names):
            if name == task_id:
                copies.append((0, np.arange(10, dtype=np.uint8), identifier))
            elif name.startswith(f"{task_id}_"):
                _, k, colours = name.split("_")
                copies.append((int(k[1:]), np.array(list(map(int, colours)), np.uint8), identifier))
        assert len(copies) == 1 + COPIES
        (score,) = solved(arc, task)
        assert candidates(score) == slow_votes(solver, raw, copies)
        assert any(grid for test in candidates(score) for grid, _ in test)  # the model says something
        (first_only,) = solved(ArcSolver(solver, Adaptation(copies=0)), task)
        assert candidates(first_only) == slow_votes(solver, raw, copies[:1])


def test_tasks_are_known_by_the_data_set_of_the_training(trained: Trained, tmp_path: Path) -> None:
    """Rows of another build of the data set would be taken for those of a task."""
    task = parsed("e0", trained.tasks["e0"])
    moved = write_model(tmp_path / "run", read_metadata(trained.data, "test"), TINY_ARC_ARCH)
    assert not ArcSolver(load(moved), Adaptation()).knows(task)  # its data set is not here
    assert ArcSolver(load(moved, data_path=trained.data), Adaptation()).knows(task)
    other_size = write_model(tmp_path / "other", ARC, TINY_ARC_ARCH, data_path=trained.data)
    assert not ArcSolver(load(other_size), Adaptation()).knows(task)
    assert not ArcSolver(load(trained.checkpoint), Adaptation()).knows(parsed("e9", trained.tasks["e0"]))


def test_the_size_of_the_batch_changes_no_vote(trained: Trained) -> None:
    """Whoever has less memory would get other attempts."""
    arc = ArcSolver(load(trained.checkpoint), Adaptation())
    tasks = [parsed(task_id, raw) for task_id, raw in trained.tasks.items()]
    found = [[candidates(score) for score in solved(arc, *tasks, batch_size=size)] for size in (2, 64)]
    assert found[0] == found[1]


# ---------------------------------------------------------------------------------------------------- unknown tasks


def test_an_unknown_task_has_the_mean_of_all_embeddings(trained: Trained, tmp_path: Path) -> None:
    """A task would be answered by whatever rule another task has in the row of its number."""
    raw = random_task(7, test=2)
    score, again = solved(ArcSolver(load(trained.checkpoint), Adaptation(copies=3)), *[parsed("new", raw)] * 2)
    assert candidates(score) == candidates(again)
    assert [test.predictions for test in score.inputs] == [4, 4]
    # The same answers as of a model in which each row is the mean
    mean = load(trained.checkpoint)
    table = mean.head.model.puzzle_emb
    assert table is not None
    rows = np.array(table.weights).astype(np.float64)
    table.weights = mx.array(np.broadcast_to(rows.mean(axis=0), rows.shape).astype(np.float32))
    copies = ArcSolver(mean, Adaptation(copies=3))._copies(parsed("new", raw), 0)
    literal = [(int(k), colours, 1) for k, colours in zip(copies.transforms, copies.colours, strict=True)]
    assert candidates(score) == slow_votes(mean, raw, literal)
    assert (literal[0][0], literal[0][1].tolist()) == (0, list(range(10)))


def test_the_seed_decides_the_copies(trained: Trained) -> None:
    """A result could not be had again."""
    arc = ArcSolver(load(trained.checkpoint), Adaptation(copies=5))
    task = parsed("new", random_task(7))
    drawn = [arc._copies(task, seed).colours.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


# ---------------------------------------------------------------------------------------------------- adapted


def demonstration_loss(head: ACTLossHead, task: Task) -> float:
    """The loss on the demonstrations as they stand, by the embedding of the task itself."""
    boards = [[grid_to_tokens(grid) for grid in pair] for pair in task.train]
    inputs, labels = (np.stack(side).astype(np.int32) for side in zip(*boards, strict=True))
    batch = {
        "inputs": mx.array(inputs),
        "labels": mx.array(np.where(labels == 0, -100, labels)),
        "puzzle_identifiers": mx.ones(len(inputs), mx.int32),
    }
    carry = head.model.begin_step(head.model.initial_carry(batch), batch)
    _, _, metrics, _ = head(carry, head.model.puzzle_rows(carry), training=False)
    return float(np.array(metrics["lm_loss"] / metrics["count"]))


def adapted(solver: Solver, task: Task, **keys: Any) -> ACTLossHead:
    """The model that answers a task."""
    arc = ArcSolver(solver, Adaptation(**({"copies": 2, "adapt_steps": 3} | keys)))
    return arc._solver_for(task, arc._copies(task, 0), 0).head


@pytest.mark.slow
def test_embeddings_alone_are_trained_and_only_those_of_the_copies(trained: Trained) -> None:
    """What the model has learnt of all other tasks would be changed by one, or nothing be learnt of it."""
    solver, task = load(trained.checkpoint), parsed("new", random_task(7, train=2))
    before = weights(solver.head)
    head = adapted(solver, task, adapt_emb_lr=0.4)
    after = weights(head)
    assert after.keys() == before.keys()
    for name in before.keys() - {TABLE}:
        assert after[name].tobytes() == before[name].tobytes(), name
    mean = before[TABLE].astype(np.float64).mean(axis=0)
    moved = np.abs(after[TABLE] - mean).max(axis=1) > 1e-3
    assert moved.tolist() == [False, True, True, True]  # the first is for padding
    untrained = adapted(solver, task, adapt_steps=0)
    np.testing.assert_allclose(weights(untrained)[TABLE], np.broadcast_to(mean, (4, len(mean))), atol=1e-6)
    # One token of 901 in a model that has learnt nothing: not by much, but it falls
    assert demonstration_loss(head, task) < demonstration_loss(untrained, task) - 0.005
    # A task that looks the same in all its copies has one
    plain = parsed("plain", {"train": [{"input": [[0]], "output": [[0]]}], "test": [{"input": [[0]]}]})
    moved = np.abs(weights(adapted(solver, plain, adapt_steps=1))[TABLE] - mean).max(axis=1) > 1e-3
    assert moved.tolist() == [False, True, False, False]


@pytest.mark.slow
def test_all_weights_are_trained_where_that_is_asked_for(trained: Trained) -> None:
    """The key would do nothing, or the trained model be lost to a task for those that come after it."""
    solver, task = load(trained.checkpoint), parsed("new", random_task(7, train=2))
    before = weights(solver.head)
    head = adapted(solver, task, copies=1, adapt="all", adapt_lr=1e-2)
    after = weights(head)
    changed = {name for name in before.keys() - {TABLE} if not np.array_equal(after[name], before[name])}
    assert {name for name in changed if "init" in name} == set()
    assert len(changed) > 5
    assert demonstration_loss(head, task) < 0.9 * demonstration_loss(adapted(solver, task, adapt_steps=0), task)
    for name, array in weights(solver.head).items():
        assert array.tobytes() == before[name].tobytes(), name


@pytest.mark.slow
def test_each_task_starts_from_the_trained_model(trained: Trained) -> None:
    """Answers would depend on which tasks came before."""
    solver = load(trained.checkpoint)
    first, second = (parsed(name, random_task(seed, train=2)) for name, seed in (("a", 7), ("b", 8)))
    keys = Adaptation(copies=1, adapt_steps=2, adapt="all", adapt_lr=1e-2)
    both = solved(ArcSolver(solver, keys), first, second)
    alone = solved(ArcSolver(load(trained.checkpoint), keys), second)
    assert candidates(both[1]) == candidates(alone[0])
    known = parsed("e0", trained.tasks["e0"])  # and a known one is not trained on at all
    (after,) = solved(ArcSolver(solver, keys), known)
    (before,) = solved(ArcSolver(load(trained.checkpoint), Adaptation(copies=1)), known)
    assert candidates(after) == candidates(before)


def test_a_model_without_puzzle_embeddings_has_none_to_train(tmp_path: Path) -> None:
    """The message would name a key of pretrain.py."""
    solver = load(write_model(tmp_path / "run", ARC, TINY_ARC_ARCH | {"puzzle_emb_ndim": 0}))
    task = parsed("new", random_task(7))
    assert [test.predictions for test in solved(ArcSolver(solver, Adaptation(copies=1)), task)[0].inputs] == [2]
    with pytest.raises(UserError, match=r"adapt = 'emb' trains puzzle embeddings, and this model has none.*adapt=all"):
        ArcSolver(solver, Adaptation(adapt_steps=1))
    solved(ArcSolver(solver, Adaptation(copies=1, adapt_steps=1, adapt="all")), task)


# ---------------------------------------------------------------------------------------------------- the command line


def test_a_task_is_typed_as_json(trained: Trained, run_here: Run) -> None:
    """A task could not be tried without a file for it; its lists must not be taken for a list of the command line."""
    raw = random_task(7, train=30)  # more brackets than any other key may have
    arguments = [f"checkpoint={trained.checkpoint}", f"puzzle={json.dumps(raw)}", "copies=1"]
    status, out, err = run_here(*arguments, "json=true")
    assert status == 1  # its answer is known, and another
    (record,) = [json.loads(line) for line in out.splitlines()]
    assert record["name"] == "puzzle 1"
    (test,) = record["tests"]
    assert test.keys() == {"attempt_1", "attempt_2", "votes", "of", "solved"}
    assert (test["of"], test["solved"]) == (2, False)
    note, *score = err.splitlines()
    assert note.startswith(
        "1 of 1 tasks have no puzzle embedding of their own, and get the mean of all others: it says "
    )
    assert "expect next to nothing; adapt_steps=200 trains one on the demonstrations" in note
    assert any("pass@2" in line for line in score)

    arguments[1] = f"puzzle={json.dumps(random_task(7, train=1))}"
    status, out, err = run_here(*arguments, "adapt_steps=1")
    assert "expect next to nothing" not in err
    assert out.count("attempt 1: ") == out.count("attempt 2: ") == 1
    assert "puzzle 1, test input 1\n" in out
    known = {"e0": trained.tasks["e0"]}
    status, out, err = run_here(*arguments[:1], f"puzzle={json.dumps(known)}", "json=true", "copies=1")
    assert json.loads(out)["name"] == "e0"
    assert "puzzle embedding" not in err


def test_known_tasks_are_said_not_to_be_trained_on(trained: Trained, run_here: Run, tmp_path: Path) -> None:
    """Somebody would believe to have measured what adapt_steps does, to tasks that it does nothing to."""
    file = tmp_path / "e0.json"
    file.write_text(json.dumps(trained.tasks["e0"]))
    _, _, err = run_here(f"checkpoint={trained.checkpoint}", f"puzzle={file}", "adapt_steps=1", "copies=1")
    assert "1 of 1 tasks are known to the model by name, and not trained on" in err


def test_the_name_of_a_task_can_t_command_the_terminal(trained: Trained, run_here: Run) -> None:
    """A file of tasks from anywhere could change colours, titles and lines."""
    task = json.dumps({"\u001b[31mX": trained.tasks["e0"]})
    _, out, _ = run_here(f"checkpoint={trained.checkpoint}", f"puzzle={task}", "copies=0")
    assert "\u001b" not in out


def test_a_folder_of_tasks_becomes_a_submission(trained: Trained, run_here: Run, tmp_path: Path) -> None:
    """The ARC Prize's own tasks have no outputs: they would be refused, or count as wrong."""
    tasks = {name: random_task(seed, test=tests) for name, seed, tests in (("b1", 3, 1), ("a2", 4, 2))}
    for name, raw in tasks.items():
        for pair in raw["test"]:
            del pair["output"]
        write_task(tmp_path / "tasks", name, raw)
    arguments = [f"checkpoint={trained.checkpoint}", f"puzzle={tmp_path / 'tasks'}", "copies=2"]
    status, out, err = run_here(*arguments, "submission=new/submission.json")
    assert (status, out) == (0, "")  # nothing is known to be wrong
    assert err.splitlines()[1:] == ["submission: new/submission.json"]
    written = json.loads((tmp_path / "new" / "submission.json").read_text())
    assert list(written) == ["a2", "b1"]
    assert [len(tests) for tests in written.values()] == [2, 1]
    for tests in written.values():
        for test in tests:
            assert list(test) == ["attempt_1", "attempt_2"]
            for grid in test.values():
                assert 1 <= len(grid) <= 30
                assert {len(row) for row in grid} <= set(range(1, 31))
                assert {colour for row in grid for colour in row} <= set(range(10))
    status, out, err = run_here(*arguments, "json=true")
    for record in map(json.loads, out.splitlines()):
        found = [{key: test[key] for key in ("attempt_1", "attempt_2")} for test in record["tests"]]
        assert found == written[record["name"]]
        assert all("solved" not in test for test in record["tests"])

    # The attempts are those of the votes
    arc = ArcSolver(load(trained.checkpoint), Adaptation(copies=2))
    (score,) = solved(arc, parsed("b1", tasks["b1"]))
    assert [written["b1"][0][f"attempt_{i}"] for i in (1, 2)] == list(attempts(score.inputs[0]))


def test_a_submission_that_cannot_be_written_is_told_at_once(trained: Trained, run_here: Run, tmp_path: Path) -> None:
    """Hours of training on the tasks would be lost."""
    (tmp_path / "folder").mkdir()
    arguments = [f"checkpoint={trained.checkpoint}", f"puzzle={json.dumps(random_task(7))}", "submission=folder"]
    status, out, err = run_here(*arguments)
    assert (status, out, err) == (1, "", "error: folder is a folder; name the file to write\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["puzzle={}"], "puzzle 1"),
        (["puzzle=[1, 2]"], "puzzle 1"),
        (["puzzle=53..7"], "puzzle 1 is not valid JSON"),
        (["puzzle=nowhere.json"], "nowhere.json is missing"),
        (['puzzle={"train": [], "test": []}'], "puzzle 1"),
        (['puzzle={"train": [{"input": [[1]], "output": [[10]]}], "test": [{"input": [[1]]}]}'], "10"),
        (["puzzle=x", "adapt=some"], "adapt"),
        (["puzzle=x", "adapt_steps=-1"], "adapt_steps"),
        (["puzzle=x", "copies=100000"], "copies"),
        (["puzzle=x", "adapt_lr=nan"], "adapt_lr"),
        ([f"puzzle={json.dumps(random_task(7))}", "data_path=nowhere"], "no data set at nowhere"),
        ([f"puzzle={json.dumps(random_task(7))}", "choose=rules"], "choose = 'rules' needs puzzles whose answers can"),
    ],
)
def test_mistakes_end_in_one_line(trained: Trained, run_here: Run, arguments: list[str], message: str) -> None:
    """A traceback would tell a user nothing of what to type instead."""
    status, out, err = run_here(f"checkpoint={trained.checkpoint}", *arguments)
    assert (status, out) == (1, "")
    *notes, line = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert all("expect next to nothing" in note for note in notes)
