"""Two runs side by side: both boards of a puzzle, which of them is right, and how often."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.viewer import Folders, Viewer, digits

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(evaluated: dict[str, Folders], tmp_path: Path) -> tuple[Folders, Folders]:
    """Predictions of two runs for 20 puzzles: `left` has 0 to 9 right, `right` 5 to 16; nobody has 17 to 19."""
    folders = evaluated["mini-sudoku"]
    found = []
    for name, exact in (("left", range(10)), ("right", range(5, 17))):
        target = tmp_path / "checkpoints" / "project" / name / "step_9_all_preds.0"
        shutil.copytree(folders.predictions, target)
        run = Folders(folders.dataset, target)
        labels = run.predicted("labels").astype(np.uint8)
        steps = np.repeat(labels[:, None], 3, axis=1)
        is_wrong = ~np.isin(np.arange(20), exact)
        wrong = 4 if name == "left" else 6
        steps[is_wrong, :, :wrong] = labels[is_wrong, None, :wrong] % 6 + 2
        steps[:, 0, 8:12] = 1  # blank at first
        np.save(target / "step_preds.npy", steps)
        np.save(target / "preds.npy", steps[:, -1])
        found.append(run)
    return found[0], found[1]


def check_comparison(viewer: Viewer, left: Folders, right: Folders) -> None:
    viewer.until("view.scores.other && view.scores.other.done === 20 && view.shownTicket === view.ticket")
    assert viewer.text("#score-text").startswith("Run 1, left · step 9: 10 of 20 predictions exact, 50.0 %")
    assert viewer.text("#other-score-text").startswith("Run 2, right · step 9: 12 of 20 predictions exact, 60.0 %")
    assert viewer.roles() == ["input", "label", "prediction", "other-prediction"]
    for example, verdicts in ((0, ("✓ Exact", "✗ 6 of")), (5, ("✓ Exact",) * 2), (12, ("✗ 4 of", "✓ Exact"))):
        viewer.show(example)
        for i, (run, role) in enumerate(((left, "prediction"), (right, "other-prediction"))):
            assert viewer.board(role).lines == digits(run.predicted("preds")[example], 6)
            line = viewer.text(("#verdict", "#other-verdict")[i])
            assert line.startswith(f"Run {i + 1}: {verdicts[i]}")
    options = dict(option.rsplit(" (", 1) for option in viewer.page.locator("#filter option").all_inner_texts())
    expected = {"first": range(5), "second": range(10, 17), "both": range(5, 10), "neither": range(17, 20)}
    words = ("Only run 1 exact", "Only run 2 exact", "Both runs exact", "Neither run exact")
    for (name, examples), word in zip(expected.items(), words, strict=True):
        assert options[word] == f"{len(examples)})"
        viewer.page.locator("#filter").select_option(name)
        viewer.until("view.shownTicket === view.ticket")
        assert viewer.listed() == [f"Example {example}" for example in examples]
        scores = viewer.page.locator("#list [role=option]").first.locator(".score").all_inner_texts()
        assert [score[0] for score in scores] == [
            "✓" if name in ("first", "both") else "✗",
            "✓" if name in ("second", "both") else "✗",
        ]
    viewer.page.locator("#filter").select_option("all")


def test_two_runs_that_a_folder_holds(viewer: Viewer, runs: tuple[Folders, Folders], tmp_path: Path) -> None:
    """Which of two models is better at what: flipping between two pages, nobody sees it."""
    left, right = runs
    viewer.open(left.dataset, tmp_path)
    paths = [f"{tmp_path.name}/checkpoints/project/{name}/step_9_all_preds.0" for name in ("left", "right")]
    viewer.page.locator("#predictions").select_option(paths[0])
    viewer.until(f"view.predictions.path === '{paths[0]}' && view.shownTicket === view.ticket")
    assert viewer.roles() == ["input", "prediction", "label"]
    assert viewer.page.locator("#compare option").all_inner_texts() == ["none", "right · step 9"]
    viewer.page.locator("#compare").select_option(paths[1])
    check_comparison(viewer, left, right)

    viewer.show(12)
    viewer.press(",", ",")  # both films go on together
    for run, role in ((left, "prediction"), (right, "other-prediction")):
        assert viewer.board(role).lines == digits(run.predicted("step_preds")[12, 0], 6)
    viewer.page.locator("#predictions").select_option(paths[1])  # they change places
    viewer.until(f"view.scores.predictions.path === '{paths[1]}' && view.scores.other?.done === 20")
    assert viewer.text("#verdict").startswith("Run 1: ✓ Exact")
    assert viewer.text("#other-score-text").startswith("Run 2, left · step 9: 10 of 20")
    viewer.page.locator("#compare").select_option("")
    viewer.until("!view.scores.other && view.shownTicket === view.ticket")
    assert viewer.roles() == ["input", "prediction", "label"]
    assert viewer.text("#verdict").startswith("✓ Exact")
    assert viewer.page.locator("#other-verdict").is_hidden()


@pytest.mark.parametrize(("kind", "width"), [("maze", 1280), ("arc", 1280), ("mini-sudoku", 390), ("arc", 390)])
def test_the_runs_stand_side_by_side(viewer: Viewer, evaluated: dict[str, Folders], kind: str, width: int) -> None:
    """One below the other, their differences can't be seen without scrolling."""
    folders = evaluated[kind]
    viewer.page.set_viewport_size({"width": width, "height": 844})
    viewer.open(folders.dataset, folders.predictions)
    viewer.page.locator("#compare-input").set_input_files(str(folders.predictions))
    viewer.until("view.scores.other && view.shownTicket === view.ticket")
    left, right = (
        viewer.page.locator(f"#panels figure[data-role={role}]").bounding_box()
        for role in ("prediction", "other-prediction")
    )
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert viewer.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_run_from_another_folder(
    viewer: Viewer, runs: tuple[Folders, Folders], evaluated: dict[str, Folders]
) -> None:
    """The other run may lie anywhere; and one of other puzzles can't be compared."""
    left, right = runs
    assert viewer.page.locator("#open-compare").is_hidden()
    viewer.open(left.dataset, left.predictions.parent)
    assert viewer.page.locator("#open-compare").is_visible()
    viewer.page.locator("#compare-input").set_input_files(str(evaluated["maze"].predictions.parent))
    viewer.until("document.querySelector('#problems p')")
    assert "doesn't belong to the data set mini-sudoku" in viewer.problems[0]
    assert viewer.roles() == ["input", "prediction", "label"]
    assert viewer.page.locator("#compare").is_hidden()
    viewer.page.locator("#compare-input").set_input_files(str(right.predictions.parent))
    check_comparison(viewer, left, right)
    assert viewer.problems == []
    viewer.open(evaluated["maze"].dataset, evaluated["maze"].predictions)
    assert viewer.roles() == ["input", "prediction", "label"]


def test_two_runs_without_their_data_set(viewer: Viewer, runs: tuple[Folders, Folders]) -> None:
    """Two folders of one name, copied from two machines: predictions hold their puzzles themselves."""
    left, right = runs
    viewer.open(None, left.predictions)
    viewer.page.locator("#compare-input").set_input_files(str(right.predictions))
    viewer.until("view.scores.other?.done === 20 && view.shownTicket === view.ticket")
    assert "10 of 20 predictions exact" in viewer.text("#score-text")
    assert "12 of 20 predictions exact" in viewer.text("#other-score-text")
    viewer.show(12)
    assert viewer.board("prediction").lines == digits(left.predicted("preds")[12], 6)
    assert viewer.board("other-prediction").lines == digits(right.predicted("preds")[12], 6)
    np.save(right.predictions / "inputs.npy", right.predicted("inputs")[::-1])
    viewer.page.locator("#compare-input").set_input_files(str(right.predictions))
    viewer.until("document.querySelector('#problems p')")
    assert "inputs.npy differs in example 0" in viewer.problems[0]
