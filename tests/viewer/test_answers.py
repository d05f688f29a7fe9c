"""How the viewer judges answers: marks that hide nothing, and the rules of Sudoku and of mazes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataset import mazes
from dataset.sudoku import Board
from tests.helpers.tiny_data import make_tiny_data
from tests.helpers.viewer import ARC_COLOURS, MAZE_COLOURS, Folders, Viewer, rgb

pytestmark = pytest.mark.slow


def tokens(rows: list[str]) -> np.ndarray:
    """A maze drawn in text as the tokens of the data set's format."""
    return np.array([1 + mazes.ALPHABET.index(cell) for cell in "".join(rows)], np.uint8)


@pytest.mark.parametrize("kind", ["maze", "arc"])
@pytest.mark.parametrize("width", [1280, 390])
def test_marks_leave_predicted_colours_visible(
    viewer: Viewer, evaluated: dict[str, Folders], kind: str, width: int
) -> None:
    """What the model drew in place of the right colour is what one looks for in its mistakes."""
    folders = evaluated[kind]
    viewer.page.set_viewport_size({"width": width, "height": 844})
    viewer.open(folders.dataset, folders.predictions)
    if kind == "arc":
        viewer.page.locator("#crop").uncheck()
    marked = viewer.board("prediction")
    viewer.press("m")
    plain = viewer.board("prediction")
    pad, end = viewer.theme("pad", "end")
    colours = {token: rgb(text) for token, text in MAZE_COLOURS.items()}
    if kind == "arc":
        colours = {0: pad, 1: end} | {2 + colour: rgb(text) for colour, text in enumerate(ARC_COLOURS)}
    preds, labels = folders.predicted("preds")[0], folders.predicted("labels")[0]
    for i in np.flatnonzero((preds != labels) & (labels != -100)):
        row, column = divmod(int(i), 30)
        span = tuple(slice(place * marked.cell, (place + 1) * marked.cell) for place in (row, column))
        mark = (marked.pixels[span] != plain.pixels[span]).any(-1)
        tones = marked.pixels[span][mark].astype(int).sum(-1) / 3
        assert 0 < mark.mean() < 0.2, i
        assert tones.max() > 200, i  # in two tones, for light and for dark colours
        assert tones.min() < 100, i
        if kind == "maze" and preds[i] in (3, 4):
            continue  # a letter stands in these
        assert tuple(marked.pixels[span][marked.cell // 2, marked.cell // 2]) == colours[int(preds[i])]


def test_sudoku_answers_are_judged_by_the_rules(viewer: Viewer, tmp_path: Path) -> None:
    """An answer that keeps all clues and breaks no rule is right, whatever the label is: evaluate.py's `valid`."""
    data, run = make_tiny_data(tmp_path / "tiny"), tmp_path / "run"
    run.mkdir()
    inputs, labels = (np.load(data / "test" / f"all__{kind}.npy") for kind in ("inputs", "labels"))
    preds = labels.copy()
    inputs[1:] = np.where(np.arange(16) < 4, inputs[1:], 1)  # few clues, so that there are other solutions
    inputs[1] = 1
    preds[1] = np.roll(labels[1].reshape(4, 4), 2, axis=0).ravel()
    preds[2] = labels[2].reshape(4, 4)[[0, 1, 3, 2]].ravel()  # keeps the clues
    preds[3] = labels[3].reshape(4, 4)[[1, 0, 2, 3]].ravel()
    inputs[3, 0] = labels[3, 0]  # and this one doesn't
    preds[4, 5] = 1  # a blank
    preds[5, [0, 5]] = 5  # beyond the vocabulary's digits
    preds[6, 3] = preds[6, 2]
    np.save(data / "test" / "all__inputs.npy", inputs)
    np.save(run / "preds.npy", preds)
    valid = Board(2, 2).is_valid_answer(inputs, preds)
    assert valid[:7].tolist()[:5] == [True, True, True, False, False]
    viewer.open(data, run)
    for example in range(7):
        viewer.show(example)
        wrong = int((preds[example] != labels[example]).sum())
        if not wrong:
            expected = "✓ Exact · a valid solution"
        elif valid[example]:
            expected = f"✗ {wrong} of 16 cells wrong, yet a valid solution"
        else:
            expected = f"✗ {wrong} of 16 cells wrong · no valid solution"
        assert viewer.text("#verdict") == expected


def test_maze_answers_are_judged_by_the_rules(viewer: Viewer, tmp_path: Path) -> None:
    """Of many shortest paths the label is one; a detour is a path all the same."""
    maze = ["S  #", " # #", "  G#", "####"]  # an open ring around one wall
    answers = [
        ["Soo#", " #o#", "  G#", "####"],
        ["S  #", "o# #", "ooG#", "####"],
        ["Soo#", "o#o#", "ooG#", "####"],  # both ways at once: not optimal
        ["So #", " #o#", "  G#", "####"],  # a gap
        ["Soo#", " oo#", "  G#", "####"],  # through the wall
        ["Soo#", " #o#", "  o#", "####"],  # over the goal
        ["S  #", " # #", "  G#", "####"],
        ["Soo#", "o#o#", "  G#", "####"],  # a dead end
    ]
    data = make_tiny_data(tmp_path / "tiny")
    for path in data.glob("*/dataset.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "maze"}))
    inputs, labels = (np.stack([tokens(rows)] * 20) for rows in (maze, answers[0]))
    preds = np.stack([tokens(rows) for rows in answers])
    np.save(data / "test" / "all__inputs.npy", inputs)
    np.save(data / "test" / "all__labels.npy", labels)
    (tmp_path / "run").mkdir()
    np.save(tmp_path / "run" / "preds.npy", preds)
    valid, optimal = mazes.is_valid_path(inputs[:8], preds), mazes.is_shortest_path(inputs[:8], preds)
    assert valid.tolist() == [True, True, True, False, False, False, False, True]
    viewer.open(data, tmp_path / "run")
    for example in range(8):
        viewer.show(example)
        words = "no valid path"
        if valid[example]:
            words = f"a valid path, {'optimal' if optimal[example] else 'not optimal'}"
        text = viewer.text("#verdict")
        assert text.endswith(f"{', yet' if valid[example] and example else ' ·'} {words}"), example
