"""The maze builder and the maze generator: the documented files, right answers, and errors that name the line."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from dataset import build_maze_dataset as maze
from dataset import build_mini_maze_dataset as mini
from dataset import csv_puzzles
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.hub import serve_hub
from tests.helpers.sources import (
    MAZE_CHARACTERS,
    assert_one_line_error,
    folder_bytes,
    maze_rows,
    run_script,
    write_csv,
)

DIHEDRAL = [
    lambda g: g,
    lambda g: np.rot90(g),
    lambda g: np.rot90(g, 2),
    lambda g: np.rot90(g, 3),
    np.fliplr,
    np.flipud,
    np.transpose,
    lambda g: np.fliplr(np.rot90(g)),
]


def steps_to_goal(cells: str, side: int, avoid: str = "#") -> int:
    """The length of a shortest way from S to G, by a queue; -1 if there is none."""
    distance = {cells.index("S"): 0}
    queue = deque(distance)
    while queue:
        cell = queue.popleft()
        row, col = divmod(cell, side)
        if cells[cell] == "G":
            return distance[cell]
        for r, c in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
            inside = 0 <= r < side and 0 <= c < side
            if inside and cells[r * side + c] not in avoid and r * side + c not in distance:
                distance[r * side + c] = distance[cell] + 1
                queue.append(r * side + c)
    return -1


def assert_shortest_path(question: str, answer: str, side: int) -> int:
    """The answer adds a shortest path to the question, and nothing else; returns its cells between S and G."""
    assert question.count("S") == question.count("G") == 1
    assert all(a == q or (q, a) == (" ", "o") for q, a in zip(question, answer, strict=True))
    length = answer.count("o")
    assert steps_to_goal(answer, side, avoid="# ") == length + 1, "the marked cells are not one path"
    assert steps_to_goal(question, side) == length + 1, "there is a shorter way"
    return length


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_csv(folder / "train.csv", maze_rows(9, seed=1))
    write_csv(folder / "test.csv", maze_rows(5, seed=2))
    return folder


def build(source: Path, out: Path, **options: Any) -> Path:
    maze.build(maze.MazeOptions(source_repo=str(source), output_dir=str(out), **options))
    return out


def load(out: Path, split: str, kind: str) -> np.ndarray:
    return np.load(out / split / f"all__{kind}.npy")


def tokens(text: str) -> list[int]:
    return [MAZE_CHARACTERS.index(c) + 1 for c in text]


def test_files_are_the_documented_format(source: Path, tmp_path: Path) -> None:
    """Models and programs made for the published data set would read other mazes."""
    out = build(source, tmp_path / "out")
    assert json.loads((out / "identifiers.json").read_text()) == ["<blank>"]
    assert sorted(path.name for path in out.iterdir()) == ["identifiers.json", "test", "train"]
    for split, n, seed in (("train", 9, 1), ("test", 5, 2)):
        assert json.loads((out / split / "dataset.json").read_text()) == {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": 6,
            "seq_len": 900,
            "num_puzzle_identifiers": 1,
            "total_groups": n,
            "mean_puzzle_examples": 1.0,
            "sets": ["all"],
            "kind": "maze",
            "command": f"python dataset/build_maze_dataset.py --source-repo {source}",
        }
        rows = maze_rows(n, seed)
        for kind, column in (("inputs", 0), ("labels", 1)):
            array = load(out, split, kind)
            assert array.dtype == np.uint8
            assert array.tolist() == [tokens(row[column]) for row in rows]
        assert load(out, split, "puzzle_identifiers").tolist() == [0] * n
        for kind in ("puzzle_indices", "group_indices"):
            assert load(out, split, kind).dtype == np.int32
            assert load(out, split, kind).tolist() == list(range(n + 1))


def test_aug_adds_the_seven_turned_and_mirrored_copies(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of training mazes would be wrong or missing, or the test set grow and be another test."""
    monkeypatch.setattr(csv_puzzles, "WRITE_CELLS", 8 * 900 * 2)  # several pieces
    out = build(source, tmp_path / "out", aug=True)
    for kind, column in (("inputs", 0), ("labels", 1)):
        boards = load(out, "train", kind).reshape(9, 8, 30, 30)
        for row, copies in zip(maze_rows(9, seed=1), boards, strict=True):
            original = np.array(tokens(row[column])).reshape(30, 30)
            for k in range(8):
                assert np.array_equal(copies[k], DIHEDRAL[k](original))
    assert load(out, "train", "group_indices").tolist() == list(range(0, 73, 8))
    assert load(out, "test", "group_indices").tolist() == list(range(6))


def test_subsample_is_seeded_and_of_training_mazes_only(source: Path, tmp_path: Path) -> None:
    """Two people with the same command would train on different mazes; or the test set would shrink."""
    first = folder_bytes(build(source, tmp_path / "a", subsample_size=4, seed=1))
    assert first == folder_bytes(build(source, tmp_path / "b", subsample_size=4, seed=1))
    assert first != folder_bytes(build(source, tmp_path / "c", subsample_size=4, seed=2))
    every = [tokens(question) for question, _, _ in maze_rows(9, seed=1)]
    chosen = load(tmp_path / "a", "train", "inputs").tolist()
    assert len(chosen) == 4
    assert [row for row in every if row in chosen] == chosen, "not distinct, or not in source order"
    assert len(load(tmp_path / "a", "test", "inputs")) == 5


QUESTION, ANSWER, _ = maze_rows(1, seed=3)[0]
OPEN, ON_PATH, WALL = (text.index(c) for text, c in ((ANSWER, " "), (ANSWER, "o"), (ANSWER, "#")))


def put(text: str, at: int, character: str) -> str:
    return text[:at] + character + text[at + 1 :]


MALFORMED = {
    "short question": (QUESTION[:-1], ANSWER, ["question has 899 characters", "expected 900"]),
    "long answer": (QUESTION, ANSWER + "#", ["answer has 901 characters", "expected 900"]),
    "bad character": (put(QUESTION, 7, "x"), ANSWER, ["question has 'x' at position 8", "'G' (goal)"]),
    "not ASCII": (QUESTION, put(ANSWER, 7, "é"), ["answer has 'é' at position 8", "'o' (path)"]),
    "path in question": (put(QUESTION, ON_PATH, "o"), ANSWER, [f"question has 'o' at position {ON_PATH + 1}"]),
    "two starts": (put(QUESTION, OPEN, "S"), ANSWER, ["question has 2 cells 'S'", "expected one start"]),
    "no goal": (QUESTION.replace("G", " "), ANSWER, ["question has 0 cells 'G'", "expected one goal"]),
    "other walls": (QUESTION, put(ANSWER, WALL, " "), ["contradicts", f"position {WALL + 1}: ' ' where", "has '#'"]),
    "through a wall": (QUESTION, put(ANSWER, WALL, "o"), ["contradicts", f"position {WALL + 1}: 'o' where"]),
    "moved goal": (QUESTION, put(ANSWER, OPEN, "G"), ["contradicts", f"position {OPEN + 1}: 'G' where"]),
    "gap": (QUESTION, put(ANSWER, ON_PATH, " "), ["'o' cells are not one path from 'S' to 'G'"]),
    "no path": (QUESTION, QUESTION, ["'o' cells are not one path"]),
    "detached cell": (QUESTION, put(ANSWER, ANSWER.rindex(" "), "o"), ["'o' cells are not one path"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_row_names_file_line_and_finding(name: str, source: Path, tmp_path: Path) -> None:
    """A model would be trained on, or judged by, an answer that is none."""
    question, answer, parts = MALFORMED[name]
    rows = maze_rows(3, seed=5)
    write_csv(source / "test.csv", [rows[0], (question, answer, 0), *rows[1:]])
    with pytest.raises(UserError) as caught:
        build(source, tmp_path / "out")
    for part in [f"{source / 'test.csv'}:3: ", *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"], "a failed build left something behind"


def test_empty_file_and_bad_options_are_one_line(source: Path, tmp_path: Path) -> None:
    """A typing mistake would end in a traceback or in an empty data set."""
    write_csv(source / "test.csv", [])
    with pytest.raises(UserError, match=r"test\.csv holds no mazes"):
        build(source, tmp_path / "out")
    for options, message in (
        ({"subsample_size": 0}, "--subsample-size is 0, expected at least 1"),
        ({"seed": -1}, "--seed is -1, expected at least 0"),
        ({"source_repo": str(tmp_path)}, "train.csv is missing"),
    ):
        with pytest.raises(UserError, match=message):
            maze.build(maze.MazeOptions(**{"source_repo": str(source), "output_dir": str(tmp_path / "o")} | options))


@pytest.mark.slow
def test_readme_command_with_the_hub(source: Path, tmp_path: Path) -> None:
    """The README's line would not work as typed."""
    with serve_hub("sapientinc/maze-30x30-hard-1k", source, "dataset") as hub:
        env: Any = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache")}
        result = run_script("python dataset/build_maze_dataset.py", tmp_path, **env)
        assert result.returncode == 0, result.stderr
    data = PuzzleDataset(tmp_path / "data" / "maze-30x30-hard-1k", "train", global_batch_size=3)
    assert (data.num_examples, data.metadata.kind) == (9, "maze")
    (tmp_path / "source" / "train.csv").unlink()
    result = run_script("python dataset/build_maze_dataset.py --source-repo source --aug --overwrite", tmp_path)
    assert_one_line_error(result, "source/train.csv is missing")


# ---------------------------------------------------------------------------------------------------- the generator


def generate(out: Path, **options: int) -> Path:
    mini.build(mini.MiniMazeOptions(output_dir=str(out), **options))
    return out


@pytest.mark.parametrize(("side", "min_path", "n"), [(4, 3, 60), (5, None, 60), (12, 20, 60), (31, 60, 20)])
def test_every_answer_is_a_shortest_path(side: int, min_path: int | None, n: int, tmp_path: Path) -> None:
    """A model would be marked wrong for a better answer than the label; or puzzles would be trivial."""
    options = {} if min_path is None else {"min_path": min_path}
    out = generate(tmp_path / "out", side=side, num_train=n, num_test=n, **options)
    lengths = []
    for split in ("train", "test"):
        boards = [load(out, split, kind) for kind in ("inputs", "labels")]
        assert boards[0].shape == boards[1].shape == (n, side * side)
        for question, answer in zip(*boards, strict=True):
            asked, answered = ("".join(MAZE_CHARACTERS[token - 1] for token in cells) for cells in (question, answer))
            lengths.append(assert_shortest_path(asked, answered, side))
    assert min(lengths) >= (side if min_path is None else min_path)
    assert len(set(lengths)) > 2, "all paths are equally long"


def test_no_walls_stand_in_both_splits(tmp_path: Path) -> None:
    """The test accuracy would partly measure memory. 4x4 has so few mazes that they would repeat."""
    out = generate(tmp_path / "out", side=4, num_train=3000, num_test=1000)
    walls = {split: {row.tobytes() for row in load(out, split, "inputs") == 1} for split in ("train", "test")}
    assert (len(walls["train"]), len(walls["test"])) == (3000, 1000)
    assert not walls["train"] & walls["test"]


@pytest.mark.slow
def test_generator_repeats_itself_and_writes_an_ordinary_data_set(tmp_path: Path) -> None:
    """An offline result could not be repeated, or its data need a special path in the code."""
    result = run_script("python dataset/build_mini_maze_dataset.py --num-train 300 --num-test 20", tmp_path)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "data" / "maze-12x12"
    metadata = PuzzleDataset(out, "train", global_batch_size=10).metadata
    assert (metadata.seq_len, metadata.vocab_size, metadata.kind, metadata.box) == (144, 6, "maze", None)
    assert (metadata.total_groups, metadata.num_puzzle_identifiers) == (300, 1)
    assert PuzzleDataset(out, "test", global_batch_size=10).num_examples == 20
    same = folder_bytes(generate(tmp_path / "same", num_train=300, num_test=20))
    assert same == folder_bytes(out)
    assert same != folder_bytes(generate(tmp_path / "other", num_train=300, num_test=20, seed=1))


@pytest.mark.slow
def test_impossible_requests_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would wait for ever, or read a traceback."""
    result = run_script("python dataset/build_mini_maze_dataset.py --side 3", tmp_path)
    assert_one_line_error(result, "--side is 3, expected at least 4")
    monkeypatch.setattr(mini, "WINDOW", 2000)
    for options, message in (
        ({"side": 65}, "--side is 65, expected at most 64"),
        ({"min_path": 143}, "--min-path is 143, expected at most 142, the cells beside start and goal of 12x12"),
        ({"min_path": 0}, "--min-path is 0, expected at least 1"),
        ({"num_test": 0}, "--num-test is 0, expected at least 1"),
        ({"min_path": 120}, "only 0 of 11000 different mazes of 12x12 with 120 cells or more"),
        ({"side": 4, "min_path": 8}, r"only \d+ of 11000 different mazes of 4x4 .*: lower --min-path or --num-train"),
    ):
        with pytest.raises(UserError, match=message):
            generate(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
