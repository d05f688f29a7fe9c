"""Films of solutions: folders that the viewer opens as it opens a data set and its predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import solve
from common import IGNORE_LABEL_ID
from common.errors import UserError
from dataset.puzzle_dataset import PuzzleDataset
from dataset.puzzle_text import Puzzle
from tests.helpers.browser import browser_or_skip
from tests.helpers.configs import sizes
from tests.helpers.solving import RULE_ARCH, SUDOKU_4, rule_model, sudoku_text, write_model
from tests.helpers.tiny_data import puzzles
from tests.helpers.viewer import Viewer, digits
from utils.evaluation.thinking import Thinking
from utils.solving.film import check_film, write_film
from utils.solving.solver import Solution, Solver, load

Run = Callable[..., tuple[int, str, str]]

PREDICTIONS = "step_0_all_preds.0"
INPUTS, LABELS = puzzles(2, seed=5)
SUDOKU_6 = SUDOKU_4.model_copy(update={"seq_len": 36, "vocab_size": 8, "box": (2, 3)})


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Solver]:
    """A model that solves by the rules."""
    with rule_model():
        yield load(write_model(tmp_path_factory.mktemp("rules") / "run", SUDOKU_4, RULE_ARCH))


@pytest.fixture
def run_here(call_script: Run) -> Run:
    """Call solve.py in this process; returns (exit status, stdout, stderr)."""
    return partial(call_script, solve)


def arrays(film: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in (film / PREDICTIONS).iterdir()}


def test_a_film_has_every_step_and_stands_still_at_the_end(rules: Solver, tmp_path: Path) -> None:
    """The viewer would show the steps of another puzzle, or zeros where a puzzle was solved before the others."""
    given = [
        Puzzle("solved", INPUTS[0].astype(np.int32), None),
        Puzzle("unsolved", np.ones(16, np.int32), None),
        Puzzle("with its answer", INPUTS[1].astype(np.int32), LABELS[1].astype(np.int32)),
    ]
    solutions = list(rules.solve_all(given, Thinking(), film=True))
    film = tmp_path / "new" / "film"
    write_film(solutions, film)
    assert {path.name for path in film.iterdir()} == {"test", "identifiers.json", PREDICTIONS}
    found = arrays(film)
    steps = [solution.steps for solution in solutions]
    assert steps[0] < steps[1] == 8
    assert found["step_preds"].shape == (3, 8, 16)
    for row, solution in enumerate(solutions):
        for step in range(8):
            preds, q, halts = solution.film[min(step, solution.steps - 1)]
            np.testing.assert_array_equal(found["step_preds"][row, step], preds)
            assert found["step_q_halt_logits"][row, step] == pytest.approx(q)
            assert found["step_halted"][row, step] == halts
    np.testing.assert_array_equal(found["step_preds"][:, -1], found["preds"])
    np.testing.assert_array_equal(found["q_halt_logits"], found["step_q_halt_logits"][:, -1])
    # What is verified is the answer; of what breaks the rules nobody knows it
    np.testing.assert_array_equal(found["labels"][0], LABELS[0])
    assert set(found["labels"][1].tolist()) == {IGNORE_LABEL_ID}
    np.testing.assert_array_equal(found["labels"][2], LABELS[1])

    metadata = json.loads((film / "test" / "dataset.json").read_text())
    assert (metadata["kind"], metadata["box"], metadata["total_groups"]) == ("sudoku", [2, 2], 3)
    dataset = PuzzleDataset(film, "test", global_batch_size=3)  # this code's own reader takes it too
    (batch,) = dataset.eval_batches()
    np.testing.assert_array_equal(batch.inputs, np.stack([puzzle.inputs for puzzle in given]))
    assert set(batch.labels[1].tolist()) == {IGNORE_LABEL_ID}


def test_tokens_beyond_a_byte_stay_what_they_are(tmp_path: Path) -> None:
    """Of a large vocabulary, other symbols would be shown than the model has answered with."""
    vocabulary = ["", *(f"{number}" for number in range(299))]
    metadata = sizes(4, 300, 1).model_copy(
        update={"kind": "own", "vocabulary": vocabulary, "ignore_label_id": 0, "shape": (2, 2)}
    )
    preds = np.array([299, 256, 255, 1], np.int32)
    puzzle = Puzzle("p", preds[::-1].copy(), preds)
    solution = Solution(
        puzzle,
        preds=preds,
        verified=None,
        steps=1,
        samples=1,
        confidence=0.5,
        film=[(preds, 0.0, False)],
        metadata=metadata,
    )
    write_film([solution], tmp_path / "film")
    for name, array in arrays(tmp_path / "film").items():
        if name in ("preds", "step_preds", "labels"):
            assert array.ravel().tolist() == preds.tolist(), name
    (batch,) = PuzzleDataset(tmp_path / "film", "test", global_batch_size=1).eval_batches()
    assert (batch.inputs[0].tolist(), batch.labels[0].tolist()) == (preds[::-1].tolist(), preds.tolist())


def test_only_a_film_is_replaced(run_here: Run, tmp_path: Path) -> None:
    """A mistyped folder would be lost with all that is in it."""
    line = sudoku_text(INPUTS[0])
    arguments = [f"checkpoint={write_model(tmp_path / 'run', SUDOKU_4)}", f"puzzle={line}"]
    film = tmp_path / "film"
    status, _, err = run_here(*arguments, f"film={film}")
    assert (status, err) == (1, f"film: open puzzle_visualizer.html, and choose the folder {film}\n")
    stuck = "." * 16
    run_here(*arguments[:1], f"puzzle={stuck}", f"film={film}")
    np.testing.assert_array_equal(arrays(film)["inputs"], np.ones((1, 16)))  # replaced

    (film / "mine.txt").write_text("")
    status, out, err = run_here(*arguments, f"film={film}")
    assert (status, out) == (1, "")  # told before the model thinks
    assert err == f"error: film = {str(film)!r} is there already, and no film; name a new folder\n"
    assert {path.name for path in film.iterdir()} == {"test", "identifiers.json", PREDICTIONS, "mine.txt"}
    for other in (tmp_path / "run", tmp_path / "run" / "all_config.yaml"):
        with pytest.raises(UserError, match="is there already, and no film"):
            check_film(other)
    (tmp_path / "empty").mkdir()
    check_film(tmp_path / "empty")
    check_film(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browser_or_skip() as browser:
        yield browser


@pytest.mark.slow
def test_the_viewer_opens_a_film(browser: Any, run_here: Run, tmp_path: Path) -> None:
    """The command's last line promises a film, and the viewer would find a problem, or take it for other puzzles."""
    arguments = [f"checkpoint={write_model(tmp_path / 'run', SUDOKU_6)}", f"film={tmp_path / 'film'}"]
    (tmp_path / "p.txt").write_text(f"1{'.' * 35}\n\n{'.' * 35}6\n")
    run_here(*arguments, f"puzzle={tmp_path / 'p.txt'}", "choose=q")
    found = arrays(tmp_path / "film")
    viewer = Viewer(browser)
    viewer.open(tmp_path / "film")  # the one folder brings puzzles and predictions
    viewer.until("view.scores && view.scores.done === view.scores.count")
    assert viewer.page.evaluate("[view.kind, ...view.box]") == ["sudoku", 2, 3]
    for example in (0, 1):
        viewer.show(example)
        assert viewer.board("input").lines == digits(found["inputs"][example], 6)
        for step in (3, 2, 1, 0):  # it opens at the last step
            shown = [line.replace("?", ".") for line in viewer.board("prediction").lines]  # padding, to the untrained
            assert shown == digits(found["step_preds"][example, step], 6)
            assert viewer.text("#step-text").startswith(f"Step {step + 1} of 4")
            viewer.press(",")
    assert viewer.problems == []
    viewer.close()


@pytest.mark.slow
def test_the_viewer_calls_no_answer_right_that_nobody_knows(browser: Any, rules: Solver, tmp_path: Path) -> None:
    """An answer that breaks the rules would stand there as exact, beside a label that is none."""
    solved, unsolved = (rules.solve(text, film=True) for text in (sudoku_text(INPUTS[0]), "." * 16))
    viewer = Viewer(browser)
    write_film([solved, unsolved], tmp_path / "film")
    viewer.open(tmp_path / "film")
    viewer.until("view.scores && view.scores.done === view.scores.count")
    viewer.show(0)
    assert viewer.text("#verdict").startswith("✓ Exact · a valid solution · q_halt +0.50")
    assert "all right" in viewer.text("#step-text")
    viewer.show(1)
    assert viewer.text("#verdict").startswith("No label · no valid solution · q_halt −15.50")
    assert viewer.text("#step-text").startswith("Step 8 of 8 · 0 changed")
    score = "1 of 1 prediction exact, 100.0 %; 100.0 % of cells right; 1 puzzle without a label"
    assert viewer.text("#score-text") == score
    options = viewer.page.locator("#filter option").all_inner_texts()
    assert options[:3] == ["All (2)", "Exact (1)", "Wrong (0)"]
    marks = viewer.page.locator("#list .score").all()
    assert [mark.inner_text() for mark in marks if mark.is_visible()] == ["✓"]
    write_film([unsolved], tmp_path / "film")
    viewer.open(tmp_path / "film")
    viewer.until("view.scores && view.scores.done === view.scores.count")
    assert viewer.text("#score-text") == "1 prediction, none with a label"
    viewer.close()
