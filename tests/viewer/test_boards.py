"""Data sets in the viewer: every cell shows its value in its colour, for each kind of puzzle and each form of file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset import build_pairs_dataset
from tests.helpers.tiny_data import make_tiny_data, split_test_set
from tests.helpers.viewer import ARC_COLOURS, MAZE_COLOURS, Viewer, digits, rgb

pytestmark = pytest.mark.slow


def load(folder: Path, split: str = "train") -> dict[str, np.ndarray]:
    return {path.stem.split("__")[1]: np.load(path) for path in (folder / split).glob("all__*.npy")}


def test_sudoku_shows_clues_and_solutions(viewer: Viewer, datasets: dict[str, Path]) -> None:
    """A wrong digit, or a filled cell that passes for a clue, would make any puzzle look broken."""
    viewer.open(datasets["sudoku"])
    data = load(datasets["sudoku"])
    paper, clue_paper, ink, filled = viewer.theme("paper", "clue-paper", "ink", "filled")
    for example in (0, 17, len(data["inputs"]) - 1):
        viewer.show(example)
        question, answer = viewer.board("input"), viewer.board("label")
        assert question.lines == digits(data["inputs"][example], 9)
        assert answer.lines == digits(data["labels"][example], 9)
        glyphs: dict[tuple[bool, int], bytes] = {}
        for cell, (given, digit) in enumerate(zip(data["inputs"][example], data["labels"][example], strict=True)):
            place, is_clue = divmod(cell, 9), bool(given > 1)
            assert question.ground(*place) == (clue_paper if is_clue else paper)
            assert question.colours(*place) == {paper} or is_clue  # nothing is written into blanks
            assert answer.ground(*place) == (clue_paper if is_clue else paper)
            assert (ink if is_clue else filled) in answer.colours(*place)
            # What can't be read off pixels directly: equal digits look equal, different ones different.
            picture = answer.crop(*place).tobytes()
            assert glyphs.setdefault((is_clue, int(digit)), picture) == picture
        assert len(set(glyphs.values())) == len(glyphs)


@pytest.mark.parametrize(("kind", "boxes"), [("sudoku", (3, 3)), ("mini-sudoku", (2, 3))])
@pytest.mark.parametrize("described", [True, False], ids=["described", "older"])
def test_boxes(
    viewer: Viewer, datasets: dict[str, Path], tmp_path: Path, kind: str, boxes: Any, described: bool
) -> None:
    """Boxes of the wrong shape make right puzzles look wrong; older files don't say which they have."""
    folder = datasets[kind] if described else without_kind(datasets[kind], tmp_path / kind)
    board = viewer.open(folder).board("input")
    (heavy,) = viewer.theme("ink")
    side = boxes[0] * boxes[1]
    # Just beside the grid line before line i, in the middle of the first cell.
    for axis, size in enumerate(boxes):
        pixels = board.pixels if axis == 0 else board.pixels.transpose(1, 0, 2)
        found = {i for i in range(1, side) if tuple(pixels[i * board.cell - 1, 4]) == heavy}
        assert found == set(range(size, side, size))


def without_kind(source: Path, target: Path) -> Path:
    """A copy of a data set as it was written before dataset.json named the kind."""
    shutil.copytree(source, target)
    for path in target.glob("*/dataset.json"):
        metadata = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in metadata.items() if key not in ("kind", "box")}))
    return target


@pytest.mark.parametrize("described", [True, False], ids=["described", "older"])
def test_maze_cells_have_the_colours_of_their_kind(
    viewer: Viewer, datasets: dict[str, Path], tmp_path: Path, described: bool
) -> None:
    """A path that runs through walls on the page sends people looking for a bug in the builder."""
    viewer.open(datasets["maze"] if described else without_kind(datasets["maze"], tmp_path / "maze"))
    data = load(datasets["maze"])
    for example in (0, 5):
        viewer.show(example)
        for role, key in (("input", "inputs"), ("label", "labels")):
            board = viewer.board(role)
            tokens = data[key][example].reshape(30, 30)
            assert board.lines == ["".join("?# SGo"[token] for token in row) for row in tokens]
            for place, token in np.ndenumerate(tokens):
                assert board.ground(*place) == rgb(MAZE_COLOURS[int(token)])


@pytest.mark.parametrize("described", [True, False], ids=["described", "older"])
def test_arc_grids_are_cropped_and_can_be_seen_as_the_model_sees_them(
    viewer: Viewer, datasets: dict[str, Path], tmp_path: Path, described: bool
) -> None:
    """Training grids stand anywhere on the board: without the crop most of the page is padding, with a wrong one cells
    are missing."""
    viewer.open(datasets["arc"] if described else without_kind(datasets["arc"], tmp_path / "arc"))
    data = load(datasets["arc"])
    shifted = int(np.flatnonzero(data["inputs"][:, 0] < 2)[0])
    (pad, end) = viewer.theme("pad", "end")
    ground = {0: pad, 1: end} | {2 + colour: rgb(text) for colour, text in enumerate(ARC_COLOURS)}
    for example in (0, shifted):
        viewer.show(example)
        for crop in (True, False):
            viewer.page.locator("#crop").set_checked(crop)
            for role, key in (("input", "inputs"), ("label", "labels")):
                tokens = data[key][example].reshape(30, 30)
                if crop:
                    rows, columns = (np.flatnonzero((tokens >= 2).any(axis=axis)) for axis in (1, 0))
                    tokens = tokens[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                board = viewer.board(role)
                assert board.lines == ["".join(".|0123456789"[token] for token in row) for row in tokens]
                for place, token in np.ndenumerate(tokens):
                    assert board.ground(*place) == ground[int(token)]
    size = data["puzzle_indices"][1] - data["puzzle_indices"][0]
    viewer.show(0)
    assert viewer.page.locator("#siblings button").count() == size  # all pairs of the task are in sight
    viewer.page.locator("#siblings button").nth(1).click()
    viewer.until("view.example === 1")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)], ids=lambda version: f"npy{version[0]}")
def test_files_of_other_makes(viewer: Viewer, tmp_path: Path, version: tuple[int, int]) -> None:
    """Data sets of the PyTorch code hold int64; files from other machines have their byte order."""
    folder = make_tiny_data(tmp_path / "tiny", identifiers=3)
    data = load(folder, "test")
    shutil.rmtree(folder / "train")
    for dtype in ("|u1", "<i4", ">i4", "<i8", ">i8", ">u2"):
        for key, array in data.items():
            with open(folder / "test" / f"all__{key}.npy", "wb") as file:
                np.lib.format.write_array(file, array.astype(dtype), version=version)
        viewer.open(folder)
        assert dtype[1:].replace("i", "int").replace("u", "uint")[:-1] in viewer.page.locator("#facts").text_content()
        viewer.show(19)
        assert viewer.board("input").lines == digits(data["inputs"][19], 4)
        assert viewer.board("label").lines == digits(data["labels"][19], 4)
        assert viewer.text("#name") == "puzzle-1"


def test_every_set_of_a_split_can_be_chosen(viewer: Viewer, tmp_path: Path) -> None:
    """The second set would be out of reach, or the first one be shown for it."""
    folder = make_tiny_data(tmp_path / "tiny")
    split_test_set(folder)
    viewer.open(folder)
    assert not viewer.page.locator("#set").is_visible()
    viewer.page.locator("#split").select_option("test")
    viewer.page.locator("#set").select_option("hard")
    viewer.until("view.setName === 'hard' && view.shownTicket === view.ticket")
    assert viewer.text("#total") == "0–11"
    viewer.show(11)
    assert viewer.board("input").lines == digits(np.load(folder / "test" / "hard__inputs.npy")[11], 4)


def test_other_puzzles_show_their_tokens(viewer: Viewer, tmp_path: Path) -> None:
    """A new kind of puzzle must be visible before anybody teaches it to the viewer."""
    folder = make_tiny_data(tmp_path / "tiny")
    for path in folder.glob("*/dataset.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "kakuro"}))
    viewer.open(folder)
    tokens = load(folder)["labels"][0].reshape(4, 4)
    assert viewer.board("label").lines == ["".join(map(str, row)) for row in tokens]
    viewer.page.locator("#kind").select_option("sudoku")
    assert viewer.board("label").lines == digits(tokens.ravel(), 4)


def test_own_puzzles_show_their_own_symbols_and_shape(viewer: Viewer, tmp_path: Path) -> None:
    """Whoever brings letters would see numbers of tokens in rows of 32; and a symbol must stay text."""
    rows = [[["<b>", "&", 10], ["a", "😀", " "]], [["a", "a"]], [["&"], [10]]]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"input": row, "output": row[::-1]}) + "\n" for row in rows))
    options = build_pairs_dataset.PairsOptions(
        input_file=str(file), test_file=str(file), output_dir=str(tmp_path / "own")
    )
    build_pairs_dataset.build(options)
    viewer.open(tmp_path / "own")
    assert "2 × 3" in viewer.text("#place")
    board = viewer.board("input")
    assert board.shape == (2, 3)
    assert board.lines == ["<b>   &  10", "  a  😀    "]
    assert viewer.board("label").lines == board.lines[::-1]
    paper, ink = viewer.theme("paper", "ink")
    pictures = [board.crop(*place).tobytes() for place in np.ndindex(2, 3)]
    assert len(set(pictures)) == 6
    assert board.colours(1, 2) == {paper}  # the blank
    assert all(ink in board.colours(*place) for place in ((0, 0), (0, 1), (0, 2), (1, 0)))
    viewer.page.locator("#panels canvas").first.hover(position={"x": 5, "y": 5})
    assert viewer.text("#readout") == "row 0, column 0: <b> (token 4)"

    viewer.show(1)
    board = viewer.board("input")
    assert board.lines == ["aa ", "   "]
    assert board.colours(0, 2) == board.colours(1, 0) == {paper}  # padding
    viewer.page.locator("#panels canvas").first.hover(position={"x": 5, "y": board.pixels.shape[0] - 5})
    assert viewer.text("#readout") == "row 1, column 0: padding (token 0)"
