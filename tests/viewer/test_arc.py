"""ARC in the viewer: a test example beside its task's demonstrations, and what the scoring of its predictions gave."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dataset.arc_grids import parse_augmentation_name, tokens_to_grid
from tests.helpers.arc_grids import augment_grid
from tests.helpers.viewer import ARC_COLOURS, Folders, Viewer, rgb
from utils.arc.scoring import ArcScore, score_predictions
from utils.arc.submission import attempts, write_submission, write_table

pytestmark = pytest.mark.slow


@pytest.fixture
def scored(evaluated: dict[str, Folders], tmp_path: Path) -> tuple[Folders, ArcScore]:
    """ARC predictions of which some are right, and the files that `python -m utils.arc` writes about them: of task e0
    two of three votes are right, of e1's first test input one, and of its second none."""
    folders = evaluated["arc"]
    run = tmp_path / "run"
    shutil.copytree(folders.predictions, run / folders.predictions.name)
    better = Folders(folders.dataset, run / folders.predictions.name)
    preds, labels = better.predicted("preds"), np.maximum(better.predicted("labels"), 0)
    preds[[0, 1]] = labels[[0, 1]]  # of e0, examples 0 to 2
    preds[3] = labels[3]  # of e1, examples 3 to 8, two for each copy
    np.save(better.predictions / "preds.npy", preds)
    score = score_predictions([better.predictions], better.dataset)
    write_submission(score, run / "submission.json")
    write_table(score, run / "tasks.csv")
    return better, score


def names(folders: Folders) -> list[str]:
    """The name of each test example's puzzle."""
    listed = json.loads((folders.dataset / "identifiers.json").read_text())
    counts = np.diff(folders.data("puzzle_indices"))
    return [listed[i] for i in np.repeat(folders.data("puzzle_identifiers"), counts)]


def pairs(viewer: Viewer, section: str) -> list[np.ndarray]:
    """What the thumbnails of a section show: input and label in turn."""
    canvases = viewer.page.locator(f"#{section} canvas").count()
    return [viewer.pixels(f"#{section} canvas >> nth={i}")[..., :3] for i in range(canvases)]


def test_a_test_example_shows_its_task(viewer: Viewer, evaluated: dict[str, Folders]) -> None:
    """A grid of ARC alone says nothing: what is to be done with it stands in the demonstrations, here of the same copy,
    turned and recoloured as the example is."""
    folders = evaluated["arc"]
    viewer.open(folders.dataset, folders.predictions)
    inputs, labels = folders.data("inputs", "train"), folders.data("labels", "train")
    offsets, identifiers = folders.data("puzzle_indices", "train"), folders.data("puzzle_identifiers", "train")
    of_example = np.repeat(folders.data("puzzle_identifiers"), np.diff(folders.data("puzzle_indices")))
    for example, identifier in enumerate(of_example):
        viewer.show(example)
        viewer.until("!byId('demonstrations').hidden")
        (puzzle,) = np.flatnonzero(identifiers == identifier)
        shown = pairs(viewer, "demonstrations")
        expected = [boards[i] for i in range(offsets[puzzle], offsets[puzzle + 1]) for boards in (inputs, labels)]
        assert len(shown) == len(expected) > 0
        for pixels, tokens in zip(shown, expected, strict=True):
            grid = tokens.reshape(30, 30)
            rows, columns = (np.flatnonzero((grid >= 2).any(axis=axis)) for axis in (1, 0))
            grid = grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            cell = len(pixels) // len(grid)
            middles = pixels[cell // 2 :: cell, cell // 2 :: cell]
            assert middles.shape[:2] == grid.shape
            for place, token in np.ndenumerate(grid):
                assert tuple(middles[place]) == rgb(ARC_COLOURS[token - 2])
    viewer.page.locator("#demonstrations button").nth(1).click()
    viewer.until("view.split === 'train' && view.shownTicket === view.ticket")
    assert int(viewer.page.locator("#jump").input_value()) == offsets[puzzle] + 1
    assert viewer.page.locator("#demonstrations").is_hidden()  # there they are the puzzle's own examples
    assert viewer.page.locator("#siblings button").count() == offsets[puzzle + 1] - offsets[puzzle]


def test_attempts_stand_beside_the_label(viewer: Viewer, scored: tuple[Folders, ArcScore]) -> None:
    """What was handed in for a task, moved and recoloured as the copy on show; else it couldn't be held against the
    label."""
    folders, score = scored
    viewer.open(folders.dataset, folders.predictions.parent)
    labels = folders.data("labels")
    seen = []
    for example, name in enumerate(names(folders)):
        task, k, colours = parse_augmentation_name(name)
        within = 0 if task == "e0" else (example - 3) % 2
        grids = [np.array(grid, np.uint8) for grid in attempts(score.tasks[task].inputs[within])]
        expected = [augment_grid(grid, k, colours) for grid in grids]
        if np.array_equal(expected[0], expected[1]):
            expected = expected[:1]
        answer = tokens_to_grid(labels[example])
        viewer.show(example)
        roles = ["input", "prediction", "label", *(f"attempt-{i + 1}" for i in range(len(expected)))]
        assert viewer.roles() == roles
        for i, grid in enumerate(expected, start=1):
            assert viewer.board(f"attempt-{i}").lines == ["".join(map(str, row)) for row in grid]
            right = "right" if np.array_equal(grid, answer) else "wrong"
            caption = viewer.text(f"#panels figure[data-role=attempt-{i}] figcaption")
            assert caption == (f"Attempt {i}: {right}" if len(expected) > 1 else f"Both attempts: {right}")
            seen.append(right)
    assert set(seen) == {"right", "wrong"}


def test_votes_are_told_where_they_were_counted(viewer: Viewer, scored: tuple[Folders, ArcScore]) -> None:
    """How sure the votes were, and how far the answer was from being handed in."""
    folders, score = scored
    viewer.open(folders.dataset, folders.predictions.parent)
    for example, task, within in ((1, "e0", 0), (3, "e1", 0), (4, "e1", 1), (8, "e1", 1)):
        viewer.show(example)
        result = score.tasks[task].inputs[within]
        first = result.candidates[0]
        text = viewer.text("#votes")
        shares = f"first {first.votes} ({100 * first.votes / 3:.1f} %, q_halt {first.mean_q_halt:.2f})"
        assert text.startswith(f"Votes: {shares}")
        assert f" of {len(result.candidates)} candidate" in text
        if result.rank is None:
            assert "none of them is the label" in text
        else:
            votes = result.candidates[result.rank - 1].votes
            assert f"the label is candidate {result.rank}, with {votes} vote{'s' if votes > 1 else ''}" in text
        solved = score.tasks[task].solved(2)
        assert text.endswith(f"The task is {'solved' if solved else 'not solved'} with two attempts.")


def test_only_scores_of_these_predictions_are_shown(
    viewer: Viewer, scored: tuple[Folders, ArcScore], tmp_path: Path
) -> None:
    """A submission of last week's model beside today's predictions; and predictions that nobody has scored."""
    folders, _ = scored
    run = folders.predictions.parent
    viewer.open(folders.dataset, folders.predictions)
    assert viewer.roles() == ["input", "prediction", "label"]
    assert viewer.page.locator("#votes").is_hidden()
    for name in ("submission.json", "tasks.csv"):
        shutil.move(run / name, tmp_path / name)
        os.utime(tmp_path / name, (1e9, 1e9))
    viewer.open(folders.dataset, tmp_path)
    assert viewer.roles() == ["input", "prediction", "label"]
    for name in ("submission.json", "tasks.csv"):
        os.utime(tmp_path / name)
    (tmp_path / "other.csv").write_text("source,question\na,b\n")
    viewer.open(None, tmp_path)
    assert viewer.page.locator("#votes").is_visible()
    assert "attempt-1" in viewer.roles()
    (tmp_path / "submission.json").write_text("{")
    viewer.choose("predictions", tmp_path)
    viewer.until("document.querySelector('#problems p')")
    assert "submission.json is not valid JSON; write it again with python -m utils.arc" in viewer.problems[0]
    viewer.until("view.shownTicket === view.ticket")
    assert viewer.roles() == ["input", "prediction", "label"]
