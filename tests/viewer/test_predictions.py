"""Predictions and films in the viewer: what evaluate.py stored, marked and counted right, step by step, and saved."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_data import make_tiny_data, split_test_set
from tests.helpers.viewer import ARC_COLOURS, MAZE_COLOURS, STEPS, Folders, Viewer, digits, rgb

pytestmark = pytest.mark.slow


def wrong_cells(folders: Folders, tokens: np.ndarray) -> np.ndarray:
    """Where predictions `[examples, …, S]` miss their labels; cells without a label don't count."""
    labels = folders.predicted("labels").reshape(len(tokens), *[1] * (tokens.ndim - 2), -1)
    return (tokens != labels) & (labels != -100)


@pytest.fixture
def scored(evaluated: dict[str, Folders], tmp_path: Path) -> Folders:
    """The Sudoku of `evaluated`, with a model that is better than one step of training makes it: the first 7 of 20
    predictions are exact, and the model would halt at examples 0 to 3 and 10 to 11, whatever its Q values are."""
    folders = evaluated["mini-sudoku"]
    target = tmp_path / "run" / folders.predictions.name
    shutil.copytree(folders.predictions, target)
    better = Folders(folders.dataset, target)
    preds, labels = better.predicted("preds"), better.predicted("labels")
    preds[:7] = labels[:7]
    np.save(target / "preds.npy", preds)
    halts = np.isin(np.arange(len(preds)), [0, 1, 2, 3, 10, 11])
    np.save(target / "q_halt_logits.npy", np.where(halts, -2.5, 1.5).astype(np.float32))
    np.save(target / "q_continue_logits.npy", np.zeros(len(preds), np.float32))
    np.save(target / "step_halted.npy", np.stack([~halts, ~halts, halts], axis=1))
    return better


@pytest.mark.parametrize("kind", ["mini-sudoku", "maze", "arc"])
def test_a_real_evaluation_is_shown_beside_the_labels(viewer: Viewer, evaluated: dict[str, Folders], kind: str) -> None:
    """Somebody would judge a model by the predictions for another puzzle, or by cells marked wrong that aren't."""
    folders = evaluated[kind]
    viewer.open(folders.dataset, folders.predictions)
    if kind == "arc":
        viewer.page.locator("#crop").uncheck()
    assert viewer.roles() == ["input", "prediction", "label"]
    side = int(folders.data("inputs").shape[1] ** 0.5)
    preds, wrong = folders.predicted("preds"), wrong_cells(folders, folders.predicted("preds"))
    (red,) = viewer.theme("wrong")
    for example in (0, len(preds) - 1):
        viewer.show(example)
        board = viewer.board("prediction")
        if kind == "mini-sudoku":
            assert board.lines == digits(preds[example], side)
        else:
            symbols = "?# SGo" if kind == "maze" else ".|0123456789"
            assert "".join(board.lines) == "".join(symbols[token] for token in preds[example])
        marked = [
            red in board.colours(*divmod(i, side)) if kind == "mini-sudoku" else differs
            for i, differs in enumerate(marked_cells(viewer))
        ]
        np.testing.assert_array_equal(marked, wrong[example])
        labelled = int((folders.predicted("labels")[example] != -100).sum())
        assert f"{wrong[example].sum()} of {labelled} cells wrong" in viewer.text("#verdict")
        q_halt = folders.predicted("q_halt_logits")[example]
        assert f"q_halt {'−' if q_halt < 0 else '+'}{abs(q_halt):.2f}" in viewer.text("#verdict")

    viewer.press("m")  # marks off
    board = viewer.board("prediction")
    assert not any(red in board.colours(*divmod(i, side)) for i in range(side * side))
    if kind != "mini-sudoku":
        pad, end = viewer.theme("pad", "end")
        arc = {0: pad, 1: end} | {2 + colour: rgb(text) for colour, text in enumerate(ARC_COLOURS)}
        colours = {token: rgb(text) for token, text in MAZE_COLOURS.items()} if kind == "maze" else arc
        for i, token in enumerate(preds[-1]):
            if kind == "maze" and token in (3, 4):
                continue  # a letter fills these
            # Where an ARC label has nothing, the prediction doesn't count, and is faint.
            is_full = board.ground(*divmod(i, side)) == colours[int(token)]
            assert is_full == (folders.predicted("labels")[-1, i] != -100)


def test_the_crop_hides_no_mistake(viewer: Viewer, evaluated: dict[str, Folders]) -> None:
    """A model that doesn't find the end of a grid is wrong just outside of it, where ARC's labels end."""
    folders = evaluated["arc"]
    viewer.open(folders.dataset, folders.predictions)
    for example, wrong in enumerate(wrong_cells(folders, folders.predicted("preds")).sum(-1)):
        viewer.show(example)
        assert viewer.board("prediction").shape != (30, 30)
        assert marked_cells(viewer).sum() == wrong


def test_predictions_go_through_all_sets(viewer: Viewer, tmp_path: Path) -> None:
    """evaluate.py writes one file for all sets: in the second one every prediction would be another puzzle's."""
    folder = make_tiny_data(tmp_path / "tiny")
    split_test_set(folder)  # 8 easy, 12 hard
    labels = np.concatenate([np.load(folder / "test" / f"{name}__labels.npy") for name in ("easy", "hard")])
    steps = np.repeat(labels[:, None], 2, axis=1)
    steps[8, :, :3] = steps[8, :, :3] % 4 + 2  # three cells of the first hard one
    halted = np.arange(20)[:, None] == np.array([0, 8])  # at the last step that one alone
    arrays = {"preds": steps[:, -1], "step_preds": steps, "step_halted": halted, "labels": labels.astype(np.int16)}
    for key, array in arrays.items():
        (tmp_path / "run").mkdir(exist_ok=True)
        np.save(tmp_path / "run" / f"{key}.npy", array)
    viewer.open(folder, tmp_path / "run")
    assert viewer.text("#score-text").startswith("8 of 8 predictions exact")
    viewer.page.locator("#set").select_option("hard")
    viewer.until("view.setName === 'hard' && view.scores.done === 12 && view.shownTicket === view.ticket")
    assert viewer.text("#score-text").startswith("11 of 12 predictions exact")
    assert viewer.page.locator("#filter option").all_inner_texts()[3:] == [
        "Wrong, yet would halt (1)",
        "Exact, yet would go on (11)",
    ]
    assert viewer.text("#verdict") == "✗ 3 of 16 cells wrong · no valid solution · would halt after step 2"
    assert viewer.board("prediction").lines == digits(steps[8, 1], 4)


def marked_cells(viewer: Viewer) -> np.ndarray:
    """Which cells of the prediction have marks, flat: those that look another way once marks are off."""
    board = viewer.board("prediction")
    viewer.press("m")
    differs = (board.pixels != viewer.board("prediction").pixels).any(-1)
    viewer.press("m")
    rows, columns = board.shape
    return differs.reshape(rows, board.cell, columns, board.cell).any(axis=(1, 3)).ravel()


def test_counts_and_filters(viewer: Viewer, scored: Folders) -> None:
    """The page would tell another accuracy than evaluate.py, or hide the puzzles that somebody looks for."""
    viewer.open(scored.dataset, scored.predictions)
    right = 1 - wrong_cells(scored, scored.predicted("preds")).mean()
    text = viewer.text("#score-text")
    assert text.startswith("7 of 20 predictions exact, 35.0 %")
    assert f"{100 * right:.1f} % of cells right" in text
    assert text.endswith("4 examples without prediction")  # evaluate.py got max_examples=20

    options = viewer.page.locator("#filter option").all_inner_texts()
    assert options == ["All (20)", "Exact (7)", "Wrong (13)", "Wrong, yet would halt (2)", "Exact, yet would go on (3)"]
    expected = {"exact": range(7), "wrong": range(7, 20), "sure": [10, 11], "unsure": [4, 5, 6]}
    for name, examples in expected.items():
        viewer.page.locator("#filter").select_option(name)
        viewer.until("view.shownTicket === view.ticket")
        assert viewer.listed() == [f"Example {example}" for example in examples]
        assert viewer.text("#found") == f"{len(examples)} examples found"
        assert int(viewer.page.locator("#jump").input_value()) in examples
    viewer.page.locator("#filter").select_option("wrong")
    viewer.page.locator("#list").focus()
    viewer.press("Home", "ArrowDown", "ArrowRight")
    assert viewer.text("#name") == "Example 9"

    viewer.page.locator("#filter").select_option("all")
    viewer.show(22)
    assert viewer.text("#verdict") == "No prediction for this example"
    assert viewer.roles() == ["input", "label"]


def test_predictions_alone(viewer: Viewer, evaluated: dict[str, Folders]) -> None:
    """A checkpoint folder copied from another machine comes without its data set."""
    for kind, title in (("mini-sudoku", "Sudoku"), ("maze", "Maze"), ("arc", "ARC")):
        predictions = evaluated[kind].predictions
        viewer.choose("predictions", predictions.parent)  # a run's folder will do
        assert viewer.problems == []
        assert viewer.page.locator("#kind").evaluate("select => select.selectedOptions[0].text") == title
        assert viewer.roles() == ["input", "prediction", "label"]
        viewer.until("view.scores.done === view.scores.count")
        missed = wrong_cells(evaluated[kind], evaluated[kind].predicted("preds")).sum()
        labelled = (evaluated[kind].predicted("labels") != -100).sum()
        assert f" {100 * (1 - missed / labelled):.1f} % of cells right" in viewer.text("#score-text")
    viewer.open(evaluated["arc"].dataset)  # and then it is found after all
    viewer.until("view.scores && view.scores.done")
    assert viewer.text("#name") == "e0"
    assert viewer.roles() == ["input", "prediction", "label"]


# ---------------------------------------------------------------------------------------------------------------- films


def test_the_film_shows_the_stored_steps(viewer: Viewer, evaluated: dict[str, Folders]) -> None:
    """What is seen as the model's thinking must be what it thought, in this order."""
    folders = evaluated["mini-sudoku"]
    viewer.open(folders.dataset, folders.predictions)
    steps = folders.predicted("step_preds")
    wrong = wrong_cells(folders, steps).sum(-1)
    margin = folders.predicted("step_q_halt_logits") - folders.predicted("step_q_continue_logits")
    assert steps.shape[1] == STEPS
    np.testing.assert_array_equal(folders.predicted("step_halted"), margin > 0)  # HRM's rule
    for example in (0, 19):
        viewer.show(example)
        for step in reversed(range(STEPS)):  # it opens at the last step
            assert viewer.board("prediction").lines == digits(steps[example, step], 6)
            text = viewer.text("#step-text")
            assert text.startswith(f"Step {step + 1} of {STEPS} · {wrong[example, step]} wrong cell")
            assert text.endswith(f"{'−' if margin[example, step] < 0 else '+'}{abs(margin[example, step]):.2f}")
            viewer.press(",")
        listed = ", ".join(map(str, wrong[example]))
        assert listed in viewer.page.locator("#plot").get_attribute("aria-label")


@pytest.fixture
def film(evaluated: dict[str, Folders], tmp_path: Path) -> Folders:
    """A film whose every step is known: 8 wrong cells, then 3, then none; the model would halt after the second."""
    folders = evaluated["mini-sudoku"]
    target = tmp_path / "run" / folders.predictions.name
    shutil.copytree(folders.predictions, target)
    labels = folders.predicted("labels").astype(np.uint8)
    steps = np.repeat(labels[:, None], 3, axis=1)
    for step, wrong in ((0, 8), (1, 3)):
        steps[:, step, :wrong] = labels[:, :wrong] % 6 + 2  # another digit: 2 to 7 is turned round by one
        steps[:, step, :wrong] = np.where(steps[:, step, :wrong] > 7, 2, steps[:, step, :wrong])
    np.save(target / "step_preds.npy", steps)
    np.save(target / "preds.npy", labels)
    np.save(target / "step_q_halt_logits.npy", np.tile(np.array([-1, 1, 2], np.float32), (len(labels), 1)))
    np.save(target / "step_q_continue_logits.npy", np.zeros((len(labels), 3), np.float32))
    np.save(target / "step_halted.npy", np.tile([False, True, True], (len(labels), 1)))
    return Folders(folders.dataset, target)


def test_film_controls(viewer: Viewer, film: Folders) -> None:
    """Play, pause, steps, speed and the plot are what the film is for."""
    viewer.open(film.dataset, film.predictions)
    assert "would halt after step 2" in viewer.text("#verdict")
    steps = film.predicted("step_preds")[0]
    assert (steps[0] != steps[1]).sum() == 5
    page = viewer.page
    page.locator("#step").fill("1")
    assert viewer.text("#step-text") == "Step 1 of 3 · 8 wrong cells · q_halt − q_continue −1.00"
    page.locator("#step-forward").click()
    assert viewer.text("#step-text") == "Step 2 of 3 · 3 wrong cells · 5 changed · q_halt − q_continue +1.00"

    # Changed cells are framed, and brighter right after the change.
    page.wait_for_timeout(800)
    calm = viewer.board("prediction").pixels
    page.locator("#step").fill("1")
    before = viewer.board("prediction").pixels
    cell = len(calm) // 6
    edges = np.array([calm[r * cell + 4, c * cell + cell // 2].astype(int) for r in range(6) for c in range(6)])
    plain = np.array([before[r * cell + 4, c * cell + cell // 2].astype(int) for r in range(6) for c in range(6)])
    framed = np.flatnonzero(np.abs(edges - plain).max(-1) > 20)
    assert set(np.flatnonzero(steps[0] != steps[1])) <= set(framed)
    assert set(framed) <= set(range(8))

    page.locator("#speed").select_option("16")
    page.locator("#play").click()
    viewer.until("!player.playing && player.step === 2")
    assert viewer.text("#step-text").startswith("Step 3 of 3 · all right")
    page.locator("#speed").select_option("1")
    page.locator("body").click(position={"x": 1, "y": 1})
    viewer.press(" ")  # from the beginning again
    assert viewer.text("#play") == "Pause"
    assert viewer.text("#step-text").startswith("Step 1 of 3")
    viewer.press(" ", ".")
    assert viewer.text("#play") == "Play"
    assert viewer.text("#step-text").startswith("Step 2 of 3")

    box = page.locator("#plot").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    assert viewer.text("#step-text").startswith("Step 3 of 3")
    # The columns of the plot: tall, lower, none, in the colour of wrong cells.
    tall, lower, none = column_heights(viewer)
    assert tall > 90
    assert lower == pytest.approx(tall * 3 / 8, abs=3)
    assert none == 0
    assert page.locator("#plot").get_attribute("aria-label").endswith("8, 3, 0; would halt after step 2")


def column_heights(viewer: Viewer) -> list[int]:
    """The height of the plot's columns over its three steps, in pixels, from the shade of red that they have."""
    pixels = viewer.pixels("#plot").astype(int)
    inside = pixels[22:127]
    width = pixels.shape[1] - 74
    red = (inside[..., 0] - inside[..., 2] > 60) & (inside[..., 3] > 60)
    return [int(red[:, 34 + round(width * (step + 0.3) / 3)].sum()) for step in range(3)]


def download(viewer: Viewer, button: str) -> tuple[str, Any]:
    """The name and the picture that a button saves."""
    with viewer.page.expect_download() as waiting:
        viewer.page.locator(button).click()
    return waiting.value.suggested_filename, Image.open(io.BytesIO(waiting.value.path().read_bytes()))


def test_saved_pictures(viewer: Viewer, film: Folders) -> None:
    """For a paper or a chat: a film that doesn't move, or a picture that isn't what was on the page."""
    viewer.open(film.dataset, film.predictions)
    viewer.show(4)
    name, still = download(viewer, "#save-picture")
    assert name == "mini-sudoku-test-4-step-3.png"
    assert still.size == (3 * 6 * 40 + 4 * 16, 6 * 40 + 2 * 26 + 2 * 16 + 130 + 16)

    name, animation = download(viewer, "#save-film")
    assert name == "mini-sudoku-test-4-film.png"
    assert (animation.n_frames, animation.size) == (3, still.size)
    frames: list[Any] = []
    for number in range(3):
        animation.seek(number)
        frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert animation.info["duration"] == 2000  # the last step stays longer
    # Cells 0 to 7 of the prediction are right from the third step on, cells 3 to 7 from the second.
    (paper,) = viewer.theme("wrong-paper")
    left, top = 16 + 6 * 40 + 16, 16 + 2 * 26
    is_wrong = [
        [tuple(frame[top + i // 6 * 40 + 9, left + i % 6 * 40 + 9]) == paper for i in range(36)] for frame in frames
    ]
    clear = [i for i in range(36) if i not in range(8)]
    assert [sum(row) for row in is_wrong][2] == 0
    assert not any(row[i] for row in is_wrong for i in clear)
    assert all(is_wrong[0][:8])

    name, strip = download(viewer, "#save-strip")
    assert name == "mini-sudoku-test-4-strip.png"
    assert strip.size == (3 * 6 * 40 + 4 * 16, 26 + 16 + 2 * (26 + 6 * 40 + 16))
    pixels = np.asarray(strip.convert("RGB"))
    (page,) = viewer.theme("page")
    panels = [(line, column) for line in range(2) for column in range(3)]
    filled = [tuple(pixels[100 + 282 * line, 16 + 256 * column + 5]) != page for line, column in panels]
    assert filled == [True] * 5 + [False]  # input, three steps, label


def test_a_film_without_q_values_still_plays(viewer: Viewer, film: Folders) -> None:
    """Partial folders: the plot would be gone with its second line."""
    for path in film.predictions.glob("*q_*.npy"):
        path.unlink()
    (film.predictions / "preds.npy").unlink()
    viewer.open(film.dataset, film.predictions)
    assert viewer.text("#verdict") == "✓ Exact · a valid solution · would halt after step 2"
    viewer.press(",", ",")
    assert viewer.text("#step-text") == "Step 1 of 3 · 8 wrong cells"
    assert viewer.page.locator("#filter option").count() == 5


def marked_steps(marked: np.ndarray, unmarked: np.ndarray) -> set[int]:
    """At which of three steps one plot has a vertical line that the other lacks."""
    rows = slice(22, 127)
    differs = (marked[rows].astype(int) != unmarked[rows]).any(-1).sum(0)
    width = marked.shape[1] - 74
    return {int((x - 34) / (width / 3)) for x in np.flatnonzero(differs > 30)}


def test_the_mark_of_halting_is_the_model_s_word(viewer: Viewer, film: Folders) -> None:
    """Each architecture has its own rule. With one that the page made up, a film would be marked where another model
    would have halted: these Q values, positive from the second step on, mean nothing to the page."""
    path = film.predictions / "step_halted.npy"
    path.rename(path.with_suffix(".aside"))  # as before it was stored
    viewer.open(film.dataset, film.predictions)
    assert "would" not in viewer.text("#verdict")
    unmarked = viewer.pixels("#plot")
    assert viewer.page.locator("#plot").get_attribute("aria-label").endswith("8, 3, 0")
    assert viewer.text("#step-text").endswith("q_halt − q_continue +2.00")
    assert viewer.page.locator("#filter option").count() == 3
    _, strip = download(viewer, "#save-strip")

    for halted, step in (([0, 1, 1], 2), ([0, 0, 1], 3), ([1, 0, 0], 1), ([0, 0, 0], None)):
        for dtype in (np.bool_, np.uint8):
            np.save(path, np.tile(np.array(halted, dtype), (20, 1)))
            viewer.open(None, film.predictions)
            words = "would not halt within 3 steps" if step is None else f"would halt after step {step}"
            assert viewer.text("#verdict").endswith(f" · {words}")
            assert viewer.page.locator("#plot").get_attribute("aria-label").endswith(f"8, 3, 0; {words}")
            assert marked_steps(viewer.pixels("#plot"), unmarked) == ({step - 1} if step else set())
            sure = 20 * halted[-1]  # all predictions are right in the end
            assert viewer.page.locator("#filter option").all_inner_texts()[3:] == [
                "Wrong, yet would halt (0)",
                f"Exact, yet would go on ({20 - sure})",
            ]
        _, marked = download(viewer, "#save-strip")
        differs = (np.asarray(marked.convert("RGB")) != np.asarray(strip.convert("RGB"))).any(-1)
        titles = {(int(y) - 42) // 282 * 3 + int(x) // 256 for y, x in np.argwhere(differs)}  # 0 is the input's
        assert titles == ({step} if step else set())


def test_a_model_without_q_continue(viewer: Viewer, film: Folders) -> None:
    """TRM has one Q value: the plot would be empty, or the page broken."""
    viewer.open(film.dataset, film.predictions)
    before = viewer.pixels("#plot")
    for path in film.predictions.glob("*q_continue_logits.npy"):
        path.unlink()
    viewer.open(None, film.predictions)
    assert viewer.text("#verdict").endswith("% sure) · would halt after step 2")
    assert "q_continue" not in viewer.text("#verdict")
    assert viewer.text("#step-text") == "Step 3 of 3 · all right · 3 changed · q_halt +2.00"
    assert viewer.page.locator("#filter option").count() == 5
    plot = viewer.pixels("#plot")
    np.testing.assert_array_equal(plot[22:], before[22:])  # the same line, since q_continue was 0
    assert (plot[:18] != before[:18]).any()  # under another name
