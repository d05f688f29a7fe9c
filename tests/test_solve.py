"""solve.py as users run it: puzzles typed, piped and in files, solved without a data set, and mistakes in one line."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest

import evaluate
import pretrain
import solve
from dataset import build_pairs_dataset
from dataset.writer import DatasetWriter
from tests.helpers.solving import ARC, RULE_ARCH, SUDOKU_4, rule_model, sudoku_text, write_model
from tests.helpers.tiny_data import puzzles, train_arguments

Run = Callable[..., tuple[int, str, str]]

LINE = "1..4..1..1..4..1"
STUCK = "................"  # which no rule of the hand-made model begins


def call(script: ModuleType, *arguments: str) -> int:
    """Run a script's `main` in this process, also in a fixture of the module."""
    with mock.patch.dict(os.environ), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
        try:
            script.main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


@dataclass(frozen=True)
class Trained:
    """A finished run whose data set is gone, its test puzzles, and what evaluate.py predicted for them."""

    run: Path
    inputs: np.ndarray
    labels: np.ndarray
    preds: np.ndarray
    q_halt: np.ndarray

    @property
    def texts(self) -> list[str]:
        return [sudoku_text(tokens) for tokens in self.inputs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data, run = folder / "data", folder / "run"
    with DatasetWriter(data, seq_len=16, vocab_size=6, kind="sudoku", box=(2, 2)) as writer:
        for split, n, seed in (("train", 64, 0), ("test", 10, 1)):
            ones = np.ones(n, np.int32)
            inputs, labels = puzzles(n, seed)
            writer.add(
                split, inputs, labels, puzzle_identifiers=0 * ones, examples_per_puzzle=ones, puzzles_per_group=ones
            )
    assert call(pretrain, *train_arguments(data, run)) == 0
    assert call(evaluate, f"checkpoint={run}") == 0
    saved = {name: np.load(run / "step_16_all_preds.0" / f"{name}.npy") for name in ("preds", "q_halt_logits")}
    shutil.rmtree(data)
    return Trained(run, inputs, labels, saved["preds"], saved["q_halt_logits"])


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A checkpoint that solves by the rules, as an argument."""
    with rule_model():
        yield f"checkpoint={write_model(tmp_path_factory.mktemp('rules') / 'run', SUDOKU_4, RULE_ARCH)}"


@pytest.fixture
def run_here(call_script: Run) -> Run:
    """Call solve.py in this process; returns (exit status, stdout, stderr)."""
    return partial(call_script, solve)


def records(out: str) -> list[dict[str, Any]]:
    """What json=true printed: nothing but lines of JSON."""
    return [json.loads(line) for line in out.splitlines()]


def one_line(result: tuple[int, str, str]) -> str:
    """The one line about a mistake, beside which nothing is printed."""
    status, out, err = result
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err.removeprefix("error: ").rstrip("\n")


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(["source,question,answer,rating", *(f"made,{q},{a},0" for q, a in rows)]) + "\n")
    return path


# ---------------------------------------------------------------------------------------------------- a trained model


def test_answers_are_those_of_an_evaluation_though_the_data_set_is_gone(
    trained: Trained, run_here: Run, tmp_path: Path
) -> None:
    """What solve.py says of a puzzle would not be what the model was scored by."""
    file = tmp_path / "many.txt"
    file.write_text("\n".join(trained.texts))
    status, out, err = run_here(f"checkpoint={trained.run}", f"puzzle={file}", "choose=q", "json=true")
    assert status == 1  # after 16 steps it solves none
    found = records(out)
    assert [record["answer"] for record in found] == [sudoku_text(tokens) for tokens in trained.preds]
    assert [record["puzzle"] for record in found] == trained.texts
    assert [record["name"] for record in found] == [f"{file}:{line}" for line in range(1, 11)]
    assert {record["steps"] for record in found} == {3}
    confidence = 1 / (1 + np.exp(-trained.q_halt.astype(np.float64)))
    np.testing.assert_allclose([record["confidence"] for record in found], confidence, atol=2e-6)
    assert err == "0 of 10 solved\n"


@pytest.mark.parametrize(
    "of_run",
    [lambda run: run, lambda run: run / "step_16", lambda run: run / "step_16" / "model.safetensors"],
    ids=["run", "step", "file"],
)
def test_each_form_of_a_checkpoint_is_taken(trained: Trained, run_here: Run, of_run: Callable[[Path], Path]) -> None:
    """Whoever names the step that evaluate.py takes would be told that there is no model."""
    status, out, err = run_here(f"checkpoint={of_run(trained.run)}", f"puzzle={trained.texts[0]}", "choose=q")
    assert (status, err) == (1, "")
    boards, verdict = out.rstrip("\n").rsplit("\n", 1)
    assert boards.splitlines()[0].split() == ["puzzle", "answer"]
    answer = sudoku_text(trained.preds[0])
    assert [line.split()[4:] for line in boards.splitlines()[1:]] == [list(answer[i : i + 4]) for i in range(0, 16, 4)]
    assert re.fullmatch(r"breaks the rules, 3 outer steps, confidence 0\.\d{3}", verdict), verdict


# ---------------------------------------------------------------------------------------------------- ways to give one


@pytest.mark.parametrize(
    "typed",
    [
        "{line}",
        "{zeros}",
        "{rows}",
        r"{escaped}",
        " {spaced} ",
        "+--+--+\n{rows}\n+--+--+",
    ],
)
def test_a_typed_puzzle_is_solved(run_here: Run, rules: str, typed: str) -> None:
    """A puzzle copied from anywhere would be refused, or be another one by the time the model sees it."""
    inputs, labels = (tokens[0] for tokens in puzzles(1, seed=5))
    line = sudoku_text(inputs)
    rows = [line[i : i + 4] for i in range(0, 16, 4)]
    forms = {
        "line": line,
        "zeros": line.replace(".", "0"),
        "rows": "\n".join(rows),
        "escaped": r"\n".join(rows),
        "spaced": " ".join(line),
    }
    status, out, err = run_here(rules, f"puzzle={typed.format(**forms)}", "json=true")
    assert (status, err) == (0, "")
    (record,) = records(out)
    assert record == record | {"name": "puzzle 1", "puzzle": line, "answer": sudoku_text(labels)}
    assert (record["verified"], record["samples"]) == (True, 1)
    assert "exact" not in record  # nobody gave an answer
    assert record.keys() == {"name", "puzzle", "answer", "verified", "steps", "samples", "confidence"}


@pytest.mark.parametrize(
    ("typed", "puzzle"),
    [
        ("0000000000000000", STUCK),
        ("0100040010000002", ".1...4..1......2"),  # without its first zero, one cell short
        ("1000000000000000", "1..............."),
        ("1.00000000000000", "1..............."),
        ("0.12000000000000", "..12............"),
        ("1_00000000000000", "1..............."),
        ("null", None),
    ],
)
def test_no_puzzle_is_taken_for_a_number(run_here: Run, rules: str, typed: str, puzzle: str | None) -> None:
    """YAML would eat leading zeros, underscores and dots: 81 digits are a number to it."""
    result = run_here(rules, f"puzzle={typed}", "json=true")
    if puzzle is None:
        assert "'n' at row 1" in one_line(result) or "4 cells" in one_line(result)
    else:
        assert [record["puzzle"] for record in records(result[1])] == [puzzle], result[2]


def test_a_file_of_answers_is_compared_with(run_here: Run, rules: str, tmp_path: Path) -> None:
    """Who has the answers would have to compare by eye."""
    inputs, labels = puzzles(3, seed=3)
    pairs = [(sudoku_text(q), sudoku_text(a)) for q, a in zip(inputs, labels, strict=True)]
    file = write_csv(tmp_path / "p.csv", pairs)
    status, out, err = run_here(rules, f"puzzle={file}", "json=true")
    assert (status, err) == (0, "3 of 3 solved\n")
    assert [(record["name"], record["exact"]) for record in records(out)] == [(f"{file}:{i}", True) for i in (2, 3, 4)]
    status, out, _ = run_here(rules, f"puzzle={file}")
    assert (status, out.count("verified by the rules, as given, ")) == (0, 3)
    file = write_csv(tmp_path / "stuck.csv", [pairs[0], (STUCK, pairs[0][1])])
    status, out, err = run_here(rules, f"puzzle={file}", "json=true")
    assert (status, err, records(out)[1]["exact"]) == (1, "1 of 2 solved\n", False)
    assert "breaks the rules, not the given answer, " in run_here(rules, f"puzzle={file}")[1]


def test_standard_input_is_read(run_here: Run, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puzzles of another program could not be piped in; one unsolved among them makes the status 1."""
    inputs, labels = puzzles(2, seed=4)
    solvable = [sudoku_text(tokens) for tokens in inputs]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"# two\n{solvable[0]}\n\n{solvable[1]}\n"))
    status, out, err = run_here(rules, "puzzle=-", "json=true")
    assert (status, err) == (0, "2 of 2 solved\n")
    assert [record["answer"] for record in records(out)] == [sudoku_text(tokens) for tokens in labels]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{solvable[0]}\n{STUCK}\n"))
    status, out, err = run_here(rules, "puzzle=-")
    assert (status, err) == (1, "1 of 2 solved\n")
    first, second = out.split("puzzle 2\n")
    assert first.startswith("puzzle 1\n")
    assert "\nverified by the rules, " in first
    assert "\nbreaks the rules, 8 outer steps, confidence 0.000\n" in second


def test_steps_end_when_the_answer_is_verified(run_here: Run, rules: str) -> None:
    """The number of outer steps would tell nothing of how hard the puzzle was."""
    easy = "1234341221434321"
    for blanks, steps in ((1, 1), (0, 1)):
        status, out, _ = run_here(rules, f"puzzle={'.' * blanks}{easy[blanks:]}")
        assert status == 0
        assert f"verified by the rules, {steps} outer step, confidence 0.622" in out


# ---------------------------------------------------------------------------------------------------- other kinds


def test_a_maze_is_typed_in_its_own_characters(run_here: Run, tmp_path: Path) -> None:
    """Of a maze, spaces at the ends of rows would be lost, or the answer not be one that can be given again."""
    metadata = SUDOKU_4.model_copy(update={"kind": "maze", "box": None})
    checkpoint = write_model(tmp_path / "run", metadata)
    rows = ["S #G", "  # ", "#   ", "    "]
    status, out, err = run_here(f"checkpoint={checkpoint}", r"puzzle=S #G\n  # \n#   \n    ", "json=true")
    assert (status, err) == (1, "")
    (record,) = records(out)
    assert record["puzzle"].split("\n") == rows
    assert record["verified"] is False
    answer = record["answer"].split("\n")
    assert [len(row) for row in answer] == [4] * 4
    assert set(record["answer"]) <= set("# SGo?\n")
    file = tmp_path / "mazes.txt"
    file.write_text("\n".join(rows) + "\n\n" + "\n".join(rows) + "\n")
    status, out, err = run_here(f"checkpoint={checkpoint}", f"puzzle={file}", "json=true")
    assert [entry["answer"] for entry in records(out)] == [record["answer"]] * 2


def test_puzzles_of_ones_own_are_typed_in_their_symbols(run_here: Run, tmp_path: Path) -> None:
    """Whoever trains on puzzles that no builder knows could evaluate the model, but ask it nothing."""
    source = tmp_path / "pairs.csv"
    words = ["abcabc", "bcabca", "cabcab", "aabbcc", "ccbbaa", "abccba"]
    source.write_text("input,output\n" + "".join(f"{word},{word[::-1]}\n" for word in words))
    options = build_pairs_dataset.PairsOptions(input_file=str(source), output_dir=str(tmp_path / "data"))
    build_pairs_dataset.build(options)
    run = tmp_path / "run"
    arguments = train_arguments(tmp_path / "data", run, "global_batch_size=4", "epochs=60", "eval_interval=60")
    assert call(pretrain, *arguments) == 0
    shutil.rmtree(tmp_path / "data")
    status, out, err = run_here(f"checkpoint={run}", "puzzle=abcabc", "json=true")
    assert (status, err) == (0, "")  # nothing speaks against the answer
    (record,) = records(out)
    assert (record["puzzle"], record["verified"]) == ("abcabc", None)
    assert re.fullmatch(r"[abc]{6}", record["answer"])
    assert "no rules to verify it by, 3 outer steps, " in run_here(f"checkpoint={run}", "puzzle=abcabc")[1]

    # With the answer, that decides; what the model said is text that it takes again
    told = tmp_path / "told.csv"
    wrong = "cba" if record["answer"].startswith("a") else "abc"
    told.write_text(f"input,output\nabcabc,{record['answer']}\nabcabc,{wrong}{record['answer'][3:]}\n")
    status, out, err = run_here(f"checkpoint={run}", f"puzzle={told}", "json=true")
    assert (status, err) == (1, "1 of 2 solved\n")
    assert [entry["exact"] for entry in records(out)] == [True, False]
    assert "'z' at row 1, column 1, expected one of 'a' 'b' 'c'" in one_line(
        run_here(f"checkpoint={run}", "puzzle=zzzzzz")
    )
    assert "choose = 'rules' needs puzzles whose answers can be verified" in one_line(
        run_here(f"checkpoint={run}", "puzzle=abcabc", "choose=rules")
    )
    line = one_line(run_here(f"checkpoint={run}", "puzzle=abcabc", "samples=2", "relabel=true"))
    assert "names the kind pairs, whose symmetries aren't known" in line


def test_a_named_puzzle_gets_the_embedding_of_its_name(run_here: Run, tmp_path: Path) -> None:
    """A model that has learned what a name stands for could not be told the name."""
    source = tmp_path / "pairs.csv"
    words = ["abc", "bca", "cab", "aab", "ccb", "abb"]
    lines = [f"{word},{word[::-1]},turned\n{word},{word},kept\n" for word in words]
    source.write_text("input,output,puzzle\n" + "".join(lines))
    options = build_pairs_dataset.PairsOptions(input_file=str(source), output_dir=str(tmp_path / "data"))
    build_pairs_dataset.build(options)
    run = tmp_path / "run"
    lively = ("puzzle_emb_lr=1", "arch.puzzle_emb_ndim=32")
    arguments = train_arguments(tmp_path / "data", run, "global_batch_size=4", "epochs=4", "eval_interval=4", *lively)
    assert call(pretrain, *arguments) == 0
    confidences = {}
    for name in ("kept", "turned", None):
        named = [] if name is None else [f"puzzle_name={name}"]
        status, out, err = run_here(f"checkpoint={run}", "puzzle=abc", "json=true", *named)
        assert status == 0
        assert ("was trained on named puzzles" in err) == (name is None)
        confidences[name] = records(out)[0]["confidence"]
    assert len(set(confidences.values())) == 3
    line = one_line(run_here(f"checkpoint={run}", "puzzle=abc", "puzzle_name=mirrored"))
    assert "puzzle_name = 'mirrored'" in line
    shutil.rmtree(tmp_path / "data")
    line = one_line(run_here(f"checkpoint={run}", "puzzle=abc", "puzzle_name=kept"))
    assert "give that as data_path" in line


# ---------------------------------------------------------------------------------------------------- thinking longer


def test_further_samples_answer_alike_whatever_the_batch(trained: Trained, run_here: Run, tmp_path: Path) -> None:
    """Whoever has less memory would get other answers."""
    file = tmp_path / "many.txt"
    file.write_text("\n".join(trained.texts[:5]))
    arguments = [f"checkpoint={trained.run}", f"puzzle={file}", "samples=4", "relabel=true", "json=true", "seed=3"]
    all_found = []
    for size in (1, 3, 64):
        _, out, _ = run_here(*arguments, f"batch_size={size}", "choose=vote")
        all_found.append(records(out))
    for found in all_found[1:]:
        for record, first in zip(found, all_found[0], strict=True):
            assert record.pop("confidence") == pytest.approx(first["confidence"], abs=1e-5)
            assert record.items() <= first.items()
    assert {(record["samples"], record["steps"]) for record in all_found[0]} == {(4, 12)}


def test_samples_end_with_the_first_that_is_verified(run_here: Run, rules: str) -> None:
    """Samples would be paid for that can't be better."""
    line = sudoku_text(puzzles(1, seed=5)[0][0])
    status, out, _ = run_here(rules, f"puzzle={line}", "samples=8", "relabel=true", "json=true")
    assert (status, records(out)[0]["samples"]) == (0, 1)
    status, out, _ = run_here(rules, f"puzzle={STUCK}", "samples=3", "relabel=true")
    assert status == 1
    assert "breaks the rules, 24 outer steps in 3 samples, confidence 0.000" in out


def test_more_steps_than_trained_are_taken(run_here: Run, rules: str) -> None:
    """A model that thinks too short could not be let think longer."""
    _, out, _ = run_here(rules, f"puzzle={STUCK}", "max_steps=11", "json=true")
    assert records(out)[0]["steps"] == 11


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["puzzle=" + "." * 81], "puzzle 1 has 81 cells, this model solves 4x4 Sudoku with 16 cells"),
        (["puzzle=11.............."], "puzzle 1: 1 stands twice in a row, at row 1, column 1 and at row 1, column 2"),
        (["puzzle=5..............."], "puzzle 1: '5' at row 1, column 1, expected a digit from 1 to 4"),
        (["puzzle="], "the text holds no puzzle, expected 4x4 Sudoku with 16 cells"),
        (["puzzle=nowhere.txt"], "nowhere.txt is missing: give a file, the puzzle itself, or - for standard input"),
        (["puzzle=./"], "is a folder, which only ARC tasks are read from"),
        ([], "usage: python solve.py checkpoint=<step folder, file or hub id> puzzle=<text, file or ->"),
        (["puzzle=x", "jsn=true"], "unknown key 'jsn' in the command line; did you mean json?"),
        (["puzzle=x", "adapt_step=5"], "unknown key 'adapt_step' in the command line; did you mean adapt_steps?"),
        (["puzzle=x", "samples=4"], "samples = 4 would be the same try 4 times; give noise, random_init or relabel"),
        (["puzzle=x", "relabel=true"], "relabel is for further tries"),
        (["puzzle=x", "batch_size=0"], "batch_size"),
        (["puzzle=x", "forward_dtype=float8"], "forward_dtype"),
        (["puzzle=x", "--json"], "'--json' is not key=value"),
        ([f"puzzle={LINE}", "submission=s.json"], "submission is for ARC tasks, and"),
        ([f"puzzle={LINE}", "data_path=nowhere"], "no data set at nowhere"),
    ],
)
def test_mistakes_end_in_one_line(run_here: Run, rules: str, arguments: list[str], message: str) -> None:
    """A traceback would tell a user nothing of what to type instead."""
    assert message in one_line(run_here(rules, *arguments))


def test_what_arc_tasks_have_not_is_refused(run_here: Run, tmp_path: Path) -> None:
    """An option would be ignored without a word, or a Sudoku be given to a model of grids."""
    checkpoint = f"checkpoint={write_model(tmp_path / 'run', ARC)}"
    task = json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]})
    assert "film is for single boards" in one_line(run_here(checkpoint, f"puzzle={task}", "film=film"))
    assert not (tmp_path / "film").exists()
    assert "puzzle 1" in one_line(run_here(checkpoint, f"puzzle={LINE}"))
    assert "puzzle 1" in one_line(run_here(checkpoint, 'puzzle={"train": []}'))
