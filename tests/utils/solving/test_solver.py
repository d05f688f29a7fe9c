"""A trained model from Python: puzzles in, answers out, mistakes as UserError, and no Hydra."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import solve
from common.errors import UserError, explain
from dataset.puzzle_text import Puzzle
from tests.helpers import fresh_python
from tests.helpers.configs import count_calls, needs_compile
from tests.helpers.solving import ARC, RULE_ARCH, SUDOKU_4, rule_model, sudoku_text, write_model
from tests.helpers.tiny_data import puzzles
from utils.evaluation.thinking import Thinking
from utils.solving.solver import Solution, Solver, load

INPUTS, LABELS = puzzles(6, seed=5)
LINE, ANSWER = sudoku_text(INPUTS[0]), sudoku_text(LABELS[0])
STUCK = "." * 16  # which no rule of the hand-made model begins


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Solver]:
    """A model that solves by the rules."""
    with rule_model():
        yield load(str(write_model(tmp_path_factory.mktemp("rules") / "run", SUDOKU_4, RULE_ARCH)))


def solution(**changes: Any) -> Solution:
    values: dict[str, Any] = {
        "puzzle": Puzzle("puzzle 1", INPUTS[0].astype(np.int32), None),
        "preds": LABELS[0].astype(np.int32),
        "verified": True,
        "steps": 3,
        "samples": 1,
        "confidence": 0.98765,
        "film": [],
        "metadata": SUDOKU_4,
    }
    return Solution(**values | changes)


# ---------------------------------------------------------------------------------------------------- from Python


@pytest.mark.slow
def test_the_lines_in_the_docstring_solve_a_puzzle_without_hydra(tmp_path: Path) -> None:
    """A notebook would have its logging and its working folder taken over, or the five lines not work at all."""
    checkpoint = write_model(tmp_path / "run", SUDOKU_4)
    lines = [line.strip() for line in (solve.__doc__ or "").splitlines() if line.startswith("    ")]
    assert 3 <= len(lines) <= 5
    code = "\n".join(lines)
    code, named = re.subn(r'load\("[^"]*"\)', f"load({str(checkpoint)!r})", code)
    code, given = re.subn(r'solve\("[^"]*"\)', f"solve({LINE!r})", code)
    assert (named, given) == (1, 1)
    out, err = fresh_python.run(f"{code}\nimport sys\nprint(sorted({{'hydra', 'wandb'}} & sys.modules.keys()))")
    boards = out.splitlines()
    assert boards[0].split() == ["puzzle", "answer"]
    assert [line.split()[:4] for line in boards[1:5]] == [list(LINE[start : start + 4]) for start in range(0, 16, 4)]
    assert re.fullmatch(r"breaks the rules, 4 outer steps, confidence 0\.\d{3}", boards[5]), boards
    assert boards[6:] == ["[]"]
    assert err == ""


def test_a_puzzle_is_answered_with_all_that_is_known_of_it(rules: Solver) -> None:
    """Who calls it from a program gets numbers and tokens, and not only a text to look at."""
    found = rules.solve(LINE, film=True)
    assert (found.text, found.verified, found.exact, found.is_solved) == (ANSWER, True, None, True)
    np.testing.assert_array_equal(found.preds, LABELS[0])
    assert (found.preds.dtype, found.samples, found.puzzle.name) == (np.dtype(np.int32), 1, "puzzle 1")
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-0.5)))
    # After each step, each cell that was filled stays, and the last is the answer
    assert len(found.film) == found.steps
    filled = [(preds != 1).sum() for preds, _, _ in found.film]
    assert filled == sorted(filled)
    np.testing.assert_array_equal(found.film[-1][0], found.preds)
    assert [halts for _, _, halts in found.film] == [False] * (found.steps - 1) + [True]


def test_several_puzzles_keep_their_order(rules: Solver) -> None:
    """Harder puzzles, which take longer, would get the answers of others."""
    tokens = [INPUTS[0], np.ones(16, np.int32), *INPUTS[1:]]
    given = [Puzzle(f"p{number}", row.astype(np.int32), None) for number, row in enumerate(tokens)]
    for size in (1, 2, 64):
        found = list(rules.solve_all(given, Thinking(), batch_size=size))
        assert [one.puzzle.name for one in found] == [puzzle.name for puzzle in given]
        assert [one.verified for one in found] == [True, False, *[True] * 5]
        np.testing.assert_array_equal(np.stack([one.preds for one in found[2:]]), LABELS[1:])


def test_the_keys_of_thinking_are_taken(rules: Solver) -> None:
    """Nobody could think longer about a puzzle but from the shell."""
    found = rules.solve(STUCK, samples=3, relabel=True, max_steps=5, seed=7)
    assert (found.samples, found.steps, found.verified) == (3, 15, False)


@needs_compile
def test_a_model_is_compiled_once(rules: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second puzzle would take as long as the first: most of it is the compilation of a model of full size."""
    calls = count_calls(monkeypatch)
    rules.solve(LINE, max_steps=9)
    first = len(calls)
    assert first > 0
    for line in map(sudoku_text, INPUTS):
        rules.solve(line, max_steps=9)
    rules.solve(STUCK, max_steps=9)
    assert len(calls) == first
    assert rules.solve(STUCK, max_steps=2).steps == 2  # and it isn't the step of the other number of steps
    assert len(calls) > first


def test_the_type_of_the_numbers_can_be_chosen(tmp_path: Path) -> None:
    """A model trained in bfloat16 would be slow on a CPU, on which nothing else runs it."""
    checkpoint = str(write_model(tmp_path / "run", SUDOKU_4))
    assert load(checkpoint).head.model.config.forward_dtype == "float32"
    model = load(checkpoint, forward_dtype="bfloat16")
    assert model.head.model.config.forward_dtype == "bfloat16"


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("given", "keys", "message"),
    [
        (f"{LINE}\n{LINE}", {}, "2 puzzles were given, expected one; solve_all takes several"),
        (LINE[:-1], {}, "puzzle 1 has 15 cells, this model solves 4x4 Sudoku with 16 cells"),
        ("11" + "." * 14, {}, "puzzle 1: 1 stands twice in a row"),
        (LINE, {"sampels": 4}, "unknown key 'sampels' in solve; did you mean samples?"),
        (LINE, {"samples": 4}, "samples = 4 would be the same try 4 times"),
        (LINE, {"samples": 0}, "samples"),
        (LINE, {"choose": "best"}, "choose"),
        ("nowhere.txt", {}, "nowhere.txt is missing"),
    ],
)
def test_mistakes_are_user_errors(rules: Solver, given: str, keys: dict[str, Any], message: str) -> None:
    """A program could not tell a mistyped puzzle from a bug."""
    with pytest.raises(UserError) as caught:
        rules.solve(given, **keys)
    line = explain(caught.value) or ""
    assert message in line
    assert "\n" not in line


def test_what_is_no_model_is_a_user_error(tmp_path: Path) -> None:
    """A program could not tell a mistyped path from a bug."""
    checkpoint = str(write_model(tmp_path / "run", SUDOKU_4))
    arguments: dict[str, Any]
    for arguments, message in (
        ({"checkpoint": str(tmp_path / "nowhere")}, "is neither a folder or file here nor owner/name"),
        ({"checkpoint": tmp_path / "nowhere"}, "is neither a folder or file here nor owner/name"),
        ({"checkpoint": checkpoint, "data_path": tmp_path / "none"}, "no data set at"),
        ({"checkpoint": checkpoint, "forward_dtype": "float8"}, "forward_dtype"),
    ):
        with pytest.raises(UserError, match=message):
            load(**arguments)


def test_arc_tasks_are_not_solved_as_boards(tmp_path: Path) -> None:
    """An ARC grid has no meaning without its task."""
    model = load(str(write_model(tmp_path / "run", ARC)))
    with pytest.raises(UserError, match="this model works on ARC tasks"):
        model.solve("1")
    with pytest.raises(UserError, match="this model works on ARC tasks"):
        next(model.solve_all([Puzzle("p", np.zeros(900, np.int32), None)], Thinking()))


# ---------------------------------------------------------------------------------------------------- solutions


@pytest.mark.parametrize(
    ("verified", "labels", "is_solved", "verdict"),
    [
        (None, None, True, "no rules to verify it by, 3 outer steps, confidence 0.988"),
        (None, LABELS[0], True, "no rules to verify it by, as given, 3 outer steps, confidence 0.988"),
        (None, LABELS[1], False, "no rules to verify it by, not the given answer, 3 outer steps, confidence 0.988"),
        (True, None, True, "verified by the rules, 3 outer steps, confidence 0.988"),
        (True, LABELS[1], True, "verified by the rules, not the given answer, 3 outer steps, confidence 0.988"),
        (False, None, False, "breaks the rules, 3 outer steps, confidence 0.988"),
        (False, LABELS[0], False, "breaks the rules, as given, 3 outer steps, confidence 0.988"),
    ],
)
def test_the_verdict_is_the_rules_and_else_the_given_answers(
    verified: bool | None, labels: np.ndarray | None, is_solved: bool, verdict: str
) -> None:
    """The exit status would call an answer wrong that the rules confirm, or right that breaks them."""
    found = solution(verified=verified, puzzle=Puzzle("p", INPUTS[0].astype(np.int32), labels))
    assert (found.is_solved, found.verdict) == (is_solved, verdict)
    record = found.record()
    assert record.get("exact") == (None if labels is None else labels is LABELS[0] or bool((labels == LABELS[0]).all()))
    assert ("exact" in record) == (labels is not None)
    assert (record["verified"], record["confidence"]) == (verified, 0.98765)


def test_puzzle_and_answer_stand_side_by_side() -> None:
    """A truth would be made up where none was given, or none be shown where it was."""
    text = solution(steps=1).format()
    assert text == str(solution(steps=1))
    title, *rows, verdict = text.splitlines()
    assert title.split() == ["puzzle", "answer"]
    assert [row.split() for row in rows] == [
        [*LINE[start : start + 4], *ANSWER[start : start + 4]] for start in range(0, 16, 4)
    ]
    assert verdict == "verified by the rules, 1 outer step, confidence 0.988"
    assert "24 outer steps in 8 samples" in solution(steps=24, samples=8).verdict

    told = solution(puzzle=Puzzle("p", INPUTS[0].astype(np.int32), LABELS[1].astype(np.int32))).format()
    assert told.splitlines()[0].split() == ["puzzle", "answer", "truth"]
    assert told.count("*") == (LABELS[0] != LABELS[1]).sum()
    narrow = solution().format(width=10).splitlines()
    assert [line for line in narrow if line.isalpha()] == ["puzzle", "answer"]
