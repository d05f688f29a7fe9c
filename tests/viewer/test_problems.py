"""Folders that can't be shown: the page says which file, what was found and what to do, and keeps what it showed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.tiny_data import make_tiny_data
from tests.helpers.viewer import Folders, Viewer, digits

pytestmark = pytest.mark.slow


def overwrite(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Damage that replaces an array by another."""

    def damage(folder: Path) -> None:
        np.save(folder / "train" / name, change(np.load(folder / "train" / name)))

    return damage


def edit_metadata(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "train" / "dataset.json"
        path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != "gone"}))

    return damage


def cut(name: str, size: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "train" / name).write_bytes((folder / "train" / name).read_bytes()[:size])

    return damage


def put(array: np.ndarray, at: int, value: int) -> np.ndarray:
    array[at] = value
    return array


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing array": (lambda f: (f / "train/all__labels.npy").unlink(), ["train/all__labels.npy is missing"]),
    "missing names": (lambda f: (f / "identifiers.json").unlink(), ["tiny/identifiers.json is missing"]),
    "missing dataset.json": (lambda f: (f / "train/dataset.json").unlink(), ["tiny/train/dataset.json is missing"]),
    "cut array": (cut("all__inputs.npy", 1000), ["train/all__inputs.npy is damaged", "1,000 bytes, expected 1,152"]),
    "cut header": (cut("all__inputs.npy", 40), ["train/all__inputs.npy is damaged", "header is cut short"]),
    "empty": (cut("all__inputs.npy", 0), ["train/all__inputs.npy is damaged", "it is empty"]),
    "no npy": (
        lambda f: (f / "train/all__inputs.npy").write_text("not found: 404, sorry\n"),
        ["train/all__inputs.npy is damaged or not a .npy file"],
    ),
    "pickles": (
        overwrite("all__inputs.npy", lambda a: a.astype(object)),
        ["train/all__inputs.npy holds '|O'", "expected integers"],
    ),
    "floats": (overwrite("all__labels.npy", lambda a: a.astype("f4")), ["all__labels.npy: values of type f4"]),
    "other order": (overwrite("all__labels.npy", np.asfortranarray), ["all__labels.npy is stored column by column"]),
    "other shape": (
        overwrite("all__labels.npy", lambda a: a[:5]),
        ["all__labels.npy: shape (5, 16), expected (64, 16)"],
    ),
    "offsets too far": (
        overwrite("all__puzzle_indices.npy", lambda a: put(a, -1, 70)),
        ["all__puzzle_indices.npy: offsets end at 70, expected 64, the number of examples"],
    ),
    "offsets fall": (
        overwrite("all__group_indices.npy", lambda a: put(a, 4, 99)),
        ["all__group_indices.npy: offsets go from 99 to 5 at position 4, expected ascending"],
    ),
    "offsets late": (
        overwrite("all__group_indices.npy", lambda a: put(a, 0, 1)),
        ["all__group_indices.npy: offsets start at 1, expected 0"],
    ),
    "unknown identifier": (
        overwrite("all__puzzle_identifiers.npy", lambda a: put(a, 3, 3)),
        ["all__puzzle_identifiers.npy: identifier 3, expected 0 to 2"],
    ),
    "no JSON": (lambda f: (f / "train/dataset.json").write_text("{"), ["train/dataset.json is not valid JSON"]),
    "a list": (lambda f: (f / "train/dataset.json").write_text("[1]"), ["train/dataset.json holds no keys"]),
    "no seq_len": (edit_metadata(seq_len="gone"), ["train/dataset.json: seq_len is missing, expected a whole number"]),
    "other seq_len": (edit_metadata(seq_len=25), ["all__inputs.npy: shape (64, 16), expected (examples, 25)"]),
    "other sets": (edit_metadata(sets=["hard"]), ["train/hard__inputs.npy is missing"]),
    "no sets": (edit_metadata(sets="all"), ['train/dataset.json: sets is "all", expected a list of names']),
    "box": (edit_metadata(box=[2, 3]), ["train/dataset.json: box is [2,3], expected two numbers"]),
    "shape": (edit_metadata(shape=[2, 4]), ["train/dataset.json: shape is [2,4], expected rows and columns"]),
    "shape of text": (edit_metadata(shape="44"), ['train/dataset.json: shape is "44", expected rows and columns']),
    "no shape": (edit_metadata(shape=False), ["train/dataset.json: shape is false, expected rows and columns"]),
    "few symbols": (
        edit_metadata(vocabulary=["", "a"]),
        ["train/dataset.json: vocabulary is not as expected, a list of 6"],
    ),
    "markup for a symbol": (
        edit_metadata(vocabulary=["", "a", "b", "c", "d", "<img src=x onerror=alert(1)>"]),
        ["train/dataset.json: vocabulary is not as expected"],
    ),
    "an end of line for a symbol": (edit_metadata(vocabulary=["", *"abcd", "\n"]), ["vocabulary is not as expected"]),
    "numbers for symbols": (edit_metadata(vocabulary=[0, 1, 2, 3, 4, 5]), ["vocabulary is not as expected"]),
    "no list of symbols": (edit_metadata(vocabulary={"length": 6}), ["vocabulary is not as expected"]),
    "names": (lambda f: (f / "identifiers.json").write_text('{"a": 1}'), ["identifiers.json is no list of names"]),
    "unknown token": (
        overwrite("all__inputs.npy", lambda a: put(a, 0, 99)),
        ["all__inputs.npy: token 99 in example 0, expected 0 to 5"],
    ),
}


def test_damaged_data_sets_are_told_by_file(viewer: Viewer, tmp_path: Path) -> None:
    """A blank page leaves nobody any wiser, least of all on which of eleven files it was."""
    whole = make_tiny_data(tmp_path / "whole", identifiers=3)
    viewer.open(whole)
    shown = viewer.board("input").lines
    for name, (damage, parts) in DAMAGES.items():
        folder = tmp_path / "damaged" / "tiny"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        damage(folder)
        viewer.choose("dataset", folder)
        viewer.until("document.querySelector('#problems p')")
        (problem,) = viewer.problems
        for part in parts:
            assert part in problem, name
        assert (viewer.board("input").lines == shown) == (name != "unknown token"), (
            name
        )  # of that one the rest is shown
    viewer.open(whole)  # and the message goes


def test_wrong_folders_say_what_was_expected(viewer: Viewer, tmp_path: Path, evaluated: dict[str, Folders]) -> None:
    """Most people choose the wrong folder once: the page must send them on."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    for what, expected in (("dataset", "expected train/dataset.json"), ("predictions", "as evaluate.py writes them")):
        viewer.choose(what, tmp_path / "photos")
        (problem,) = viewer.problems
        assert problem.startswith("photos holds no predictions" if what == "predictions" else "photos is no data set")
        assert "found cat.jpg" in problem
        assert expected in problem
    assert viewer.page.locator("#welcome").is_visible()

    viewer.choose("predictions", evaluated["maze"].dataset)
    assert "this is a data set" in viewer.problems[0]
    old = tmp_path / "run"
    old.mkdir()
    (old / "step_100_all_preds.0").write_bytes(b"PK")  # what the PyTorch code writes
    viewer.choose("predictions", old)
    assert "run/step_100_all_preds.0 is a file of the PyTorch code" in viewer.problems[0]

    viewer.choose("dataset", evaluated["maze"].predictions)  # the other button: taken for what it is
    assert viewer.problems == []
    assert viewer.roles() == ["input", "prediction", "label"]
    viewer.choose("dataset", evaluated["maze"].dataset / "test")  # one split: better than nothing
    assert viewer.problems == []
    assert viewer.text("#split") == "test"
    viewer.page.locator("summary").click()
    assert "identifiers.json wasn't chosen" in viewer.text("#facts")


def test_predictions_that_belong_to_nothing(
    viewer: Viewer, tmp_path: Path, datasets: dict[str, Path], evaluated: dict[str, Folders]
) -> None:
    """Predictions beside the labels of other puzzles would all look wrong."""
    folders = evaluated["mini-sudoku"]
    folder = tmp_path / "run" / "step_9_all_preds.0"

    def complaint(dataset: Path) -> str:
        viewer.open(dataset)
        viewer.choose("predictions", folder)
        viewer.until("document.querySelector('#problems p')")
        (problem,) = viewer.problems
        assert viewer.roles() == ["input", "label"]
        return problem

    shutil.copytree(folders.predictions, folder)
    assert "predictions of 36 cells, puzzles of 81" in complaint(datasets["sudoku"])
    other = tmp_path / "other"
    shutil.copytree(folders.dataset, other)
    np.save(other / "test/all__inputs.npy", np.load(other / "test/all__inputs.npy")[::-1])
    assert "inputs.npy differs in example" in complaint(other)
    shutil.rmtree(other / "test")
    assert "it has no split test" in complaint(other)

    np.save(folder / "q_halt_logits.npy", np.zeros(3, np.float32))
    assert "q_halt_logits.npy: shape (3), expected (20)" in complaint(folders.dataset)
    shutil.copy(folders.predictions / "q_halt_logits.npy", folder)
    np.save(folder / "step_preds.npy", np.zeros((20, 3, 35), np.uint8))
    assert "step_preds.npy: shape (20, 3, 35), expected (20, 3, 36)" in complaint(folders.dataset)
    shutil.copy(folders.predictions / "step_preds.npy", folder)
    for array, found in (
        (np.zeros((20, 2), bool), "shape (20, 2), expected (20, 3)"),
        (np.zeros((20, 3), np.float32), "values of type f4, expected bool or uint8"),
    ):
        np.save(folder / "step_halted.npy", array)
        assert f"step_halted.npy: {found}" in complaint(folders.dataset)
    for path in folder.glob("*"):
        if path.name != "preds.npy":
            path.unlink()
    viewer.open(folders.dataset, folder)  # the labels are the data set's
    assert viewer.roles() == ["input", "prediction", "label"]
    viewer.choose("predictions", evaluated["maze"].predictions)  # refused: the others stay
    viewer.until("document.querySelector('#problems p')")
    viewer.press("ArrowRight")
    assert viewer.text("#name") == "Example 1"
    assert viewer.board("prediction").lines == digits(folders.predicted("preds")[1], 6)
    assert len(viewer.problems) == 1


def test_predictions_without_puzzles_ask_for_the_data_set(
    viewer: Viewer, evaluated: dict[str, Folders], tmp_path: Path
) -> None:
    """With save_outputs=[preds] there is nothing to show them beside."""
    shutil.copy(evaluated["maze"].predictions / "preds.npy", tmp_path)
    viewer.choose("predictions", tmp_path)
    assert "lacks inputs.npy or labels.npy: open the data set first" in viewer.problems[0]


def test_a_file_that_changes_under_the_page(viewer: Viewer, tmp_path: Path) -> None:
    """A builder that runs again while the page is open: an example of the new data set, with names of the old one."""
    folder = make_tiny_data(tmp_path / "tiny")
    viewer.open(folder)
    (folder / "train" / "all__inputs.npy").write_bytes(b"")
    viewer.page.locator("#next").click()
    viewer.until("document.querySelector('#problems p')")
    assert "tiny/train/all__inputs.npy" in viewer.problems[0]
    assert "choose the folder again" in viewer.problems[0]
    make_tiny_data(tmp_path / "again")
    viewer.open(tmp_path / "again")
    inputs = np.load(tmp_path / "again" / "train" / "all__inputs.npy")
    assert viewer.board("input").lines == digits(inputs[0], 4)
