"""The ARC builder: every copy is what its name says, no copy comes twice, and bad tasks are named."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from dataset import arc_augmentations
from dataset import build_arc_dataset as arc
from dataset.arc_tasks import Pair, read_task
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.arc_source import RawTask, make_arc, random_task, write_task
from tests.helpers.sources import ROOT, assert_one_line_error, folder_bytes, run_script

# Transform k of a grid of r x c: its shape, and where cell (i, j) of it comes from. From the format's description.
TRANSFORMS = [
    (lambda r, c: (r, c), lambda i, j, r, c: (i, j)),
    (lambda r, c: (c, r), lambda i, j, r, c: (j, c - 1 - i)),
    (lambda r, c: (r, c), lambda i, j, r, c: (r - 1 - i, c - 1 - j)),
    (lambda r, c: (c, r), lambda i, j, r, c: (r - 1 - j, i)),
    (lambda r, c: (r, c), lambda i, j, r, c: (i, c - 1 - j)),
    (lambda r, c: (r, c), lambda i, j, r, c: (r - 1 - i, j)),
    (lambda r, c: (c, r), lambda i, j, r, c: (j, i)),
    (lambda r, c: (c, r), lambda i, j, r, c: (r - 1 - j, c - 1 - i)),
]


def augmented(grid: list[list[int]], k: int, colours: list[int]) -> list[list[int]]:
    r, c = len(grid), len(grid[0])
    shape, source = TRANSFORMS[k]
    rows, cols = shape(r, c)
    places = [[source(i, j, r, c) for j in range(cols)] for i in range(rows)]
    return [[colours[grid[a][b]] for a, b in row] for row in places]


def board(grid: list[list[int]], top: int = 0, left: int = 0) -> list[int]:
    """The 900 tokens of a grid at (top, left), cell by cell."""
    rows, cols = len(grid), len(grid[0])
    cells = []
    for i in range(-top, 30 - top):
        for j in range(-left, 30 - left):
            if 0 <= i < rows and 0 <= j < cols:
                cells.append(grid[i][j] + 2)
            else:
                cells.append(int((i == rows and 0 <= j < cols) or (j == cols and 0 <= i < rows)))
    return cells


def top_left(tokens: np.ndarray) -> tuple[int, int]:
    rows, cols = np.nonzero(tokens.reshape(30, 30) >= 2)
    return int(rows.min()), int(cols.min())


def pairs_of(task: RawTask, split: str, is_evaluation: bool) -> list[dict[str, list[list[int]]]]:
    if split == "test":
        return task["test"]
    return task["train"] + ([] if is_evaluation else task["test"])


def build(source: Path | list[Path], out: Path, **options: int) -> Path:
    dirs = [str(path) for path in (source if isinstance(source, list) else [source])]
    arc.build(arc.ArcOptions(dataset_dirs=dirs, output_dir=str(out), **options))
    return out


def load(out: Path, split: str, kind: str) -> np.ndarray:
    return np.load(out / split / f"all__{kind}.npy")


def test_tasks_without_copies_are_the_documented_files(tmp_path: Path) -> None:
    """Models and programs made for the published data sets would read other puzzles, or test answers be trained on."""
    tasks = make_arc(tmp_path / "arc")
    out = build(tmp_path / "arc", tmp_path / "out", num_aug=0)
    ids = ["e0", "e1", "t0", "t1", "t2"]
    assert json.loads((out / "identifiers.json").read_text()) == ["<blank>", *ids]
    assert json.loads((out / "test_puzzles.json").read_text()) == {task_id: tasks[task_id] for task_id in ids[:2]}
    for split, members in (("train", ids), ("test", ids[:2])):
        sizes = [len(pairs_of(tasks[task_id], split, task_id[0] == "e")) for task_id in members]
        assert json.loads((out / split / "dataset.json").read_text()) == {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": 12,
            "seq_len": 900,
            "num_puzzle_identifiers": 6,
            "total_groups": len(members),
            "mean_puzzle_examples": sum(sizes) / len(sizes),
            "sets": ["all"],
            "kind": "arc",
            "command": f"python dataset/build_arc_dataset.py --dataset-dirs {tmp_path / 'arc'} --num-aug 0",
        }
        assert load(out, split, "puzzle_identifiers").tolist() == [1 + ids.index(task_id) for task_id in members]
        assert load(out, split, "puzzle_indices").tolist() == np.cumsum([0, *sizes]).tolist()
        assert load(out, split, "group_indices").tolist() == list(range(len(members) + 1))
        pairs = [pair for task_id in members for pair in pairs_of(tasks[task_id], split, task_id[0] == "e")]
        for kind, side in (("inputs", "input"), ("labels", "output")):
            tokens = load(out, split, kind)
            assert tokens.dtype == np.uint8
            shifts = [top_left(row) if split == "train" else (0, 0) for row in tokens]
            expected = [board(pair[side], *shift) for pair, shift in zip(pairs, shifts, strict=True)]
            assert tokens.tolist() == expected


def test_every_copy_is_the_augmentation_that_its_name_says(tmp_path: Path) -> None:
    """Training would see tasks whose examples contradict each other; scoring would map predictions back wrongly."""
    tasks = make_arc(tmp_path / "arc")
    write_task(tmp_path / "arc" / "training", "wide_t1", random_task(5, side=30))
    tasks["wide_t1"] = random_task(5, side=30)
    out = build(tmp_path / "arc", tmp_path / "out", num_aug=60)
    names = json.loads((out / "identifiers.json").read_text())
    assert len(names) == len(set(names)) == 1 + 6 * 61
    seen: dict[str, set[str]] = {}
    for split, groups in (("train", 6), ("test", 2)):
        inputs, labels = load(out, split, "inputs"), load(out, split, "labels")
        identifiers = load(out, split, "puzzle_identifiers")
        offsets = load(out, split, "puzzle_indices")
        assert load(out, split, "group_indices").tolist() == list(range(0, 61 * groups + 1, 61))
        shifted = Counter[bool]()
        for puzzle, identifier in enumerate(identifiers):
            match = re.fullmatch(r"(.*)_t([0-7])_(0[1-9]{9})", names[identifier])
            task_id, k, digits = match.groups() if match else (names[identifier], "0", "0123456789")
            assert (match is None) == (puzzle % 61 == 0), "the first puzzle of a group is the task itself"
            pairs = pairs_of(tasks[task_id], split, task_id[0] == "e")
            examples = range(offsets[puzzle], offsets[puzzle + 1])
            unshifted = 0
            for pair, example in zip(pairs, examples, strict=True):
                corner = top_left(inputs[example])
                for row, side in ((inputs[example], "input"), (labels[example], "output")):
                    grid = augmented(pair[side], int(k), [int(digit) for digit in digits])
                    assert row.tolist() == board(grid, *corner)
                unshifted += corner == (0, 0)
                shifted[corner != (0, 0)] += 1
            assert unshifted >= 1, "one pair of a puzzle stands at the top left"
            assert unshifted == len(pairs) or split == "train"
            content = json.dumps([inputs[list(examples)].tolist(), labels[list(examples)].tolist()])
            seen.setdefault(split + task_id, set()).add(content)
        if split == "train":
            assert shifted[True] > shifted[False]
    assert {len(contents) for key, contents in seen.items() if key.startswith("test")} == {61}
    identifiers_of = {split: set(load(out, split, "puzzle_identifiers").tolist()) for split in ("train", "test")}
    assert identifiers_of["test"] < identifiers_of["train"], "demonstrations and tests don't share their identifiers"


def test_shifts_are_random_common_and_cover_the_room(tmp_path: Path) -> None:
    """Fewer places than there are would mean less augmentation than published; or outputs would leave the board."""
    small, large = (np.random.default_rng(0).integers(10, size=shape).tolist() for shape in ((27, 5), (20, 28)))
    pairs = [{"input": small, "output": large}, {"input": large, "output": small}]
    write_task(tmp_path / "arc" / "evaluation", "one", {"train": pairs, "test": pairs[:1]})
    write_task(tmp_path / "arc" / "training", "other", random_task(0))
    out = build(tmp_path / "arc", tmp_path / "out", num_aug=1500)
    copies = load(out, "train", "group_indices")[:2]  # of the evaluation task, sorted first
    examples = load(out, "train", "puzzle_indices")[copies[1]]
    corners = [[top_left(row) for row in load(out, "train", kind)[:examples]] for kind in ("inputs", "labels")]
    assert corners[0] == corners[1]
    # Room for 3 more rows and 2 more columns, or the other way round in copies that lie on their side: 750 of each are
    # shifted, so 62.5 to each of 4 x 3 places.
    places = Counter(corners[0])
    assert set(places) == {(r, c) for r in range(4) for c in range(4)} - {(3, 3)}
    assert places[0, 0] > 1501
    for place, count in places.items():
        if place != (0, 0):
            assert abs(count - (62.5 if 3 in place else 125)) < 40


def literal_copy(pairs: list[Pair], k: int, colours: list[int]) -> str:
    """What the augmentation makes of the pairs, whatever their order."""
    moved = [[augmented(grid.tolist(), k, colours) for grid in pair] for pair in pairs]
    return "\n".join(sorted(map(json.dumps, moved)))


def test_fingerprints_tell_copies_apart_and_only_copies(tmp_path: Path) -> None:
    """Copies would come twice in one task, or distinct ones be thrown away."""
    rng = np.random.default_rng(0)
    square = rng.integers(3, size=(3, 3)).tolist()
    line = [[1, 2, 1]]
    tasks: list[list[tuple[list[list[int]], list[list[int]]]]] = [
        [([[1]], [[2]])],
        [([[0]], [[0]])],
        [(square, line), (augmented(square, 4, list(range(10))), line)],  # mirroring swaps the two pairs
        [(square, line), (augmented(square, 4, list(range(10))), [[2, 1, 2]])],  # … now with the wrong outputs
        [(square, square), (square, square), (line, square)],
        [(line, augmented(line, 1, list(range(10))))],
        [([[1, 2]], [[1], [2]]), ([[1], [2]], [[1, 2]])],  # shapes that differ, with the same cells in order
        [([[1, 0], [0, 2]], [[0, 1], [2, 0]]), ([[0, 1], [2, 0]], [[1, 0], [0, 2]])],
    ]
    for task in tasks:
        pairs = [(np.array(a, np.uint8), np.array(b, np.uint8)) for a, b in task]
        transforms = rng.integers(8, size=400)
        colours = np.tile(np.arange(10, dtype=np.uint8), (400, 1))
        colours[:, 1:4] = rng.permuted(colours[:, 1:4], axis=1)  # few, so that there are many equal ones
        numbers = arc_augmentations.fingerprints(pairs, transforms, colours).tolist()
        copies = [literal_copy(pairs, k, c) for k, c in zip(transforms.tolist(), colours.tolist(), strict=True)]
        assert len(set(numbers)) == len(set(copies)) == len(set(zip(numbers, copies, strict=True)))


def test_augmentations_are_drawn_from_all_there_are() -> None:
    """Fewer kinds of copies would mean less augmentation than published, and a lower score."""
    pairs = [(np.arange(10, dtype=np.uint8).reshape(2, 5), np.arange(10, dtype=np.uint8).reshape(5, 2))]
    transforms, colours = arc.draw_augmentations(pairs, 9000, np.random.default_rng(0))
    assert len(transforms) == len(colours) == 9001
    assert (transforms[0], colours[0].tolist()) == (0, list(range(10)))
    assert abs(np.bincount(transforms, minlength=8) - 1125).max() < 150
    assert (np.sort(colours, axis=1) == np.arange(10)).all()
    assert (colours[:, 0] == 0).all()
    for colour in range(1, 10):
        assert abs(np.bincount(colours[:, colour], minlength=10)[1:] - 1000).max() < 150


@pytest.mark.slow
def test_tasks_with_few_distinct_copies_get_each_once_and_one_line(tmp_path: Path) -> None:
    """The user would train on repeats; or hundreds of lines would bury the one that matters."""
    make_arc(tmp_path / "dataset-dir", training=1, evaluation=1)
    colours = {"few0": (1, 1), "few1": (0, 0), "few2": (0, 1)}  # nine colours; the task itself; a test of nine colours
    for task_id, cells in colours.items():
        pairs = [[{"input": [[cell]], "output": [[cell]]}] for cell in cells]
        write_task(tmp_path / "dataset-dir" / "training", task_id, {"train": pairs[0], "test": pairs[1]})
    command = "python dataset/build_arc_dataset.py --dataset-dirs dataset-dir --num-aug 50 --output-dir out"
    result = run_script(command, tmp_path, terminal=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "5 tasks, 1 of them to test on, as 121 puzzles",
        "3 tasks have fewer than 50 distinct copies (in 5 times as many tries), from 0 (task few1) to 8",
        "ARC data set written to out",
    ]
    assert "100%" in result.stderr
    names = json.loads((tmp_path / "out" / "identifiers.json").read_text())
    assert sorted(name[-9] for name in names if name.startswith("few0_")) == list("23456789")
    assert np.diff(load(tmp_path / "out", "train", "group_indices")).tolist() == [51, 9, 1, 9, 51]


def test_tries_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task with few distinct copies would be tried for ever."""
    drawn = []
    fingerprints = arc_augmentations.fingerprints

    def counting(pairs: list[Pair], transforms: np.ndarray, colours: np.ndarray) -> np.ndarray:
        drawn.append(len(transforms))
        return fingerprints(pairs, transforms, colours)

    monkeypatch.setattr(arc_augmentations, "fingerprints", counting)
    pairs = [(np.ones((1, 1), np.uint8), np.ones((1, 1), np.uint8))]
    transforms, colours = arc.draw_augmentations(pairs, 100, np.random.default_rng(0))
    assert len(transforms) == 9
    assert drawn == [101, 109, 109, 109, 109]
    for seed in range(50):  # two of eight possible copies: never more than asked for, never one twice
        transforms, colours = arc.draw_augmentations(pairs, 2, np.random.default_rng(seed))
        assert len({int(row[1]) for row in colours}) == len(transforms) <= 3


def test_same_seed_same_bytes_on_any_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people with the same command would train on different data, or one of them on the system's own files."""
    tasks = make_arc(tmp_path / "arc")
    monkeypatch.chdir(tmp_path)
    first = folder_bytes(build(Path("arc"), tmp_path / "a", num_aug=20, seed=1))
    other = tmp_path / "elsewhere" / "arc"
    for task_id in sorted(tasks, reverse=True):  # listed in another order, on many file systems
        subfolder = other / ("evaluation" if task_id[0] == "e" else "training")
        write_task(subfolder, task_id, {"name": task_id, **tasks[task_id]})
    (other / "training" / "._t0.json").write_bytes(b"\0\5\26\7")  # as macOS leaves them on foreign disks
    (other / "training" / ".DS_Store").write_bytes(b"\0")
    (other / "training.txt").write_text("t0\n")
    (other / "training" / "README.md").write_text("tasks\n")
    (other / "empty").mkdir()
    monkeypatch.chdir(other.parent)
    assert folder_bytes(build(Path("arc"), tmp_path / "b", num_aug=20, seed=1)) == first
    assert folder_bytes(build(Path("arc"), tmp_path / "c", num_aug=20, seed=2)) != first
    rebuilt = build(Path("arc"), tmp_path / "b", num_aug=20, seed=1, overwrite=True)
    assert folder_bytes(rebuilt) == first, "a rebuild over itself differs"


def test_tasks_without_answers_are_held_back_for_a_submission(tmp_path: Path) -> None:
    """The tasks of a competition could not be evaluated; or, in the split train, they would teach empty answers."""
    tasks = make_arc(tmp_path / "arc", training=3, evaluation=2)
    for task_id, subfolder in (("e1", "evaluation"), ("t1", "training")):
        pairs = tasks[task_id]["test"]
        tasks[task_id]["test"] = [{"input": pairs[0]["input"]}, *pairs[1:]]
        write_task(tmp_path / "arc" / subfolder, task_id, tasks[task_id])
    with pytest.raises(UserError, match="pair 1 has no 'output': --allow-unsolved builds tasks without"):
        build(tmp_path / "arc", tmp_path / "out", num_aug=2)
    options = arc.ArcOptions(dataset_dirs=[str(tmp_path / "arc")], output_dir=str(tmp_path / "out"), num_aug=2)
    lines = arc.build(options.model_copy(update={"allow_unsolved": True}))
    assert lines[1] == "2 tasks have no answers: they are in the split test, and no score counts them"
    out = tmp_path / "out"
    held_back = ("e0", "e1", "t1")
    assert json.loads((out / "test_puzzles.json").read_text()) == {task_id: tasks[task_id] for task_id in held_back}
    names = json.loads((out / "identifiers.json").read_text())
    labels, identifiers = load(out, "test", "labels"), load(out, "test", "puzzle_identifiers")
    offsets = load(out, "test", "puzzle_indices")
    for puzzle, identifier in enumerate(identifiers):
        pairs = tasks[names[identifier][:2]]["test"]
        known = [bool(labels[offsets[puzzle] + number].any()) for number in range(len(pairs))]
        assert known == ["output" in pair for pair in pairs]
    assert load(out, "train", "labels").any(axis=1).all()
    test = PuzzleDataset(out, "test", global_batch_size=6)
    assert sum(int((batch.labels == -100).all(axis=1).sum()) for batch in test.eval_batches()) >= 6


def test_data_set_trains_and_evaluates_through_the_loader(tmp_path: Path) -> None:
    """The first training command after the build would fail."""
    make_arc(tmp_path / "arc", training=10, evaluation=4)
    out = build(tmp_path / "arc", tmp_path / "out", num_aug=30)
    train = PuzzleDataset(out, "train", global_batch_size=16)
    assert (train.metadata.kind, train.metadata.num_puzzle_identifiers) == ("arc", 1 + 14 * 31)
    batches = list(train.train_batches(0, epochs=8))
    assert batches
    used = np.concatenate([batch.puzzle_identifiers for batch in batches])
    assert len(set(used.tolist())) > 50
    for batch in batches:
        assert (batch.labels[batch.labels != -100] >= 1).all()
    test = PuzzleDataset(out, "test", global_batch_size=16)
    assert sum(batch.num_examples for batch in test.eval_batches()) == test.num_examples == 31 * (1 + 2 + 1 + 2)


# ---------------------------------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_dataset_dirs_are_read_alone(tmp_path: Path) -> None:
    """`--dataset-dirs ARC-AGI-2` would silently train on ARC-1's evaluation tasks as well."""
    raw = tmp_path / "raw"
    for folder, training, evaluation in (("ARC-AGI/data", 2, 1), ("ConceptARC/corpus", 3, 0)):
        make_arc(raw / folder, training, evaluation, seed=len(folder))
    for path in (raw / "ConceptARC" / "corpus" / "training").iterdir():
        path.rename(path.with_name(f"Concept{path.name}"))
    make_arc(tmp_path / "mine", 1, 1)
    # The script below `work/dataset` finds the repository's modules, and this raw-data in the default places.
    work = tmp_path / "work"
    (work / "dataset").mkdir(parents=True)
    for path in (ROOT / "dataset").glob("*.py"):
        shutil.copy(path, work / "dataset")
    (work / "common").symlink_to(ROOT / "common")
    (work / "dataset" / "raw-data").symlink_to(raw)
    script = "python dataset/build_arc_dataset.py --num-aug 0"
    for options, out, ids in (
        ("", "data/arc-aug-1000", ["e0", "t0", "t1", "Conceptt0", "Conceptt1", "Conceptt2"]),
        ("--dataset-dirs ../mine --output-dir o1", "o1", ["e0", "t0"]),
        (
            "--dataset-dirs dataset/raw-data/ConceptARC/corpus dataset/raw-data/ARC-AGI/data --output-dir o2",
            "o2",
            ["Conceptt0", "Conceptt1", "Conceptt2", "e0", "t0", "t1"],
        ),
    ):
        result = run_script(f"{script} {options}", work)
        assert result.returncode == 0, result.stderr
        assert json.loads((work / out / "identifiers.json").read_text())[1:] == ids


@pytest.mark.slow
def test_missing_submodules_are_one_line_with_the_command(tmp_path: Path) -> None:
    """Who has cloned without submodules would read a traceback, or train on a part of the tasks."""
    work = tmp_path / "work"
    (work / "dataset" / "raw-data" / "ARC-AGI").mkdir(parents=True)  # as a clone without submodules leaves it
    for path in (ROOT / "dataset").glob("*.py"):
        shutil.copy(path, work / "dataset")
    (work / "common").symlink_to(ROOT / "common")
    result = run_script("python dataset/build_arc_dataset.py", work)
    command = "git submodule update --init --recursive"
    assert_one_line_error(result, "dataset/raw-data/ARC-AGI/data has no tasks", command)
    make_arc(work / "dataset" / "raw-data" / "ARC-AGI" / "data")
    result = run_script("python dataset/build_arc_dataset.py --num-aug 0", work)
    assert_one_line_error(result, "dataset/raw-data/ConceptARC/corpus has no tasks", command)
    assert sorted(path.name for path in (work / "data").iterdir()) == [], "a failed build left something behind"


@pytest.mark.slow
def test_bad_options_and_folders_are_one_line(tmp_path: Path) -> None:
    """A typing mistake would end in a traceback or, worse, in another data set than asked for."""
    tasks = make_arc(tmp_path / "arc")
    make_arc(tmp_path / "training-only", evaluation=0, seed=1)
    (tmp_path / "hollow" / "training").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    write_task(tmp_path / "again" / "tasks", "t1", tasks["t1"])
    for dirs, options, message in (
        (["arc"], {"num_aug": -1}, "--num-aug is -1, expected at least 0"),
        (["arc"], {"seed": -1}, "--seed is -1, expected at least 0"),
        ([], {}, "--dataset-dirs is empty"),
        (["nowhere"], {}, "nowhere is missing: expected a folder with sub-folders of .json files"),
        (["arc", "hollow"], {}, "hollow has no tasks: expected a folder with sub-folders"),
        (["arc/training"], {}, "training has no tasks: expected a folder with sub-folders"),
        (["file"], {}, "file is a file: expected a folder"),
        (["training-only"], {}, "no tasks to test on in .*training-only: expected a sub-folder 'evaluation'"),
        (["arc", "again"], {}, "again/tasks/t1.json: there is a task of that name already, .*arc/training/t1.json"),
    ):
        with pytest.raises(UserError, match=message):
            build([tmp_path / name for name in dirs], tmp_path / "out", **options)
    result = run_script("python dataset/build_arc_dataset.py --dataset-dirs nowhere", tmp_path)
    assert_one_line_error(result, "nowhere is missing")
    for option in ("--dataset-dirs", "--output-dir"):  # a home of another machine
        result = run_script(f"python dataset/build_arc_dataset.py {option} ~no-such-user/arc", tmp_path)
        assert_one_line_error(result, "~no-such-user is no known home")


GRID = [[1, 2], [3, 4]]
PAIR = {"input": GRID, "output": GRID}


def with_grid(grid: object, side: str = "output") -> object:
    return {"train": [PAIR, PAIR | {side: grid}], "test": [PAIR]}


BAD_TASKS: dict[str, tuple[object, list[str]]] = {
    "not JSON": (b"{'train': []}", ["not valid JSON", "line 1"]),
    "cut off": (json.dumps({"train": [PAIR], "test": [PAIR]}).encode()[:-7], ["not valid JSON"]),
    "empty file": (b"", ["not valid JSON"]),
    "not text": (b"\xff\xfe\x00", ["not valid JSON"]),
    "too deep": (b"[" * 100_000, ["not valid JSON"]),
    "a list": ([PAIR], ["holds a list of 1, expected an object with 'train' and 'test'"]),
    "no train": ({"test": [PAIR]}, ["has no 'train', expected a list of at least one pair"]),
    "no test pairs": ({"train": [PAIR], "test": []}, ["has a list of 0 as 'test'"]),
    "pairs by name": ({"train": {"a": PAIR}, "test": [PAIR]}, ["has an object as 'train'"]),
    "a pair as a list": ({"train": [[GRID, GRID]], "test": [PAIR]}, ["train pair 1 is a list of 2", "'input'"]),
    "held-back answer": ({"train": [PAIR], "test": [PAIR, {"input": GRID}]}, ["test pair 2 has no 'output'"]),
    "ragged": (with_grid([[1, 2], [3, 4], [5]]), ["train pair 2: row 3 of the output has 1 cells, expected 2"]),
    "no rows": (with_grid([], "input"), ["train pair 2: input has 0x0 cells, expected 1x1 to 30x30"]),
    "no columns": (with_grid([[], []]), ["train pair 2: output has 2x0 cells"]),
    "too high": (with_grid([[0]] * 31), ["output has 31x1 cells, expected 1x1 to 30x30"]),
    "too wide": (with_grid([[0] * 31]), ["output has 1x31 cells"]),
    "a flat list": (with_grid([1, 2, 3]), ["output is not a list of rows"]),
    "null": (with_grid(None), ["output is not a list of rows"]),
    "colour 10": (with_grid([[1, 10]]), ["row 1 of the output has colour 10, expected a whole number from 0 to 9"]),
    "colour -1": (with_grid([[1], [-1]]), ["row 2 of the output has colour -1"]),
    "a fraction": (with_grid([[1.0]]), ["colour 1.0"]),
    "a boolean": (with_grid([[True]]), ["colour true"]),
    "text": (with_grid([["1"]]), ['colour "1"']),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_bad_task_is_named(name: str, tmp_path: Path) -> None:
    """The user would have to search a thousand files for it, or train on garbage."""
    content, parts = BAD_TASKS[name]
    make_arc(tmp_path / "arc")
    path = write_task(tmp_path / "arc" / "evaluation", "bad", content if not isinstance(content, bytes) else None)
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        build(tmp_path / "arc", tmp_path / "out", num_aug=0)
    for part in [str(path), *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a_t3_0987654321", "<blank>"])
def test_names_that_mean_something_else_are_refused(name: str, tmp_path: Path) -> None:
    """Scoring would take the task for a copy of another one, or for padding."""
    path = write_task(tmp_path, name, random_task(0))
    with pytest.raises(UserError, match="reserve for other puzzles: rename"):
        read_task(path, is_evaluation=True)


# ---------------------------------------------------------------------------------------------------- submodules


@pytest.mark.slow
def test_submodules_are_the_published_ones() -> None:
    """`git submodule update --init --recursive` would ask for a key, or fetch other tasks than the published."""
    modules = configparser.ConfigParser()
    modules.read_string((ROOT / ".gitmodules").read_text().replace("\t", ""))
    expected = {
        "ARC-AGI": ("https://github.com/fchollet/ARC-AGI", "399030444e0ab0cc8b4e199870fb20b863846f34"),
        "ARC-AGI-2": ("https://github.com/arcprize/ARC-AGI-2", "f3283f727488ad98fe575ea6a5ac981e4a188e49"),
        "ConceptARC": ("https://github.com/victorvikram/ConceptARC", "b22ef526b4656679816b7811e78f55cc24d736d7"),
    }
    found = {section["path"]: section["url"] for _, section in modules.items() if "path" in section}
    assert found == {f"dataset/raw-data/{name}": url for name, (url, _) in expected.items()}
    assert all(any(folder.startswith(f"dataset/raw-data/{name}/") for name in expected) for folder in arc.ARC_1_DIRS)
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: which commits are recorded can't be seen")
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-s", "dataset/raw-data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    assert listed[:-1] == [f"160000 {commit} 0\tdataset/raw-data/{name}" for name, (_, commit) in expected.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folders", "tasks", "groups", "mean", "test_mean", "rows", "checksum"),
    [
        (arc.ARC_1_DIRS, 960, 400, 4.1541667, 1.0475, 419, "31a99763b5747880"),
        (["dataset/raw-data/ARC-AGI-2/data"], 1120, 120, 4.1669643, 1.3916667, 167, "decf104162b6016a"),
    ],
    ids=["ARC-1", "ARC-2"],
)
def test_the_published_tasks_are_the_published_data_set(
    folders: list[str],
    tasks: int,
    groups: int,
    mean: float,
    test_mean: float,
    rows: int,
    checksum: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many steps, and the same test puzzles, as in the PyTorch code. Only where the submodules are fetched."""
    monkeypatch.chdir(ROOT)
    if not all(Path(folder).is_dir() for folder in folders):
        pytest.skip("the submodules are not fetched")
    out = build([Path(folder) for folder in folders], tmp_path / "out", num_aug=0)
    for split, expected in (("train", (tasks, mean)), ("test", (groups, test_mean))):
        values = json.loads((out / split / "dataset.json").read_text())
        assert (values["total_groups"], round(values["mean_puzzle_examples"], 7)) == expected
    tokens = np.concatenate([load(out, "test", kind) for kind in ("inputs", "labels")], axis=1)
    assert tokens.shape == (rows, 1800)
    assert hashlib.sha256(b"".join(sorted(row.tobytes() for row in tokens))).hexdigest().startswith(checksum)


@pytest.mark.slow
def test_time_grows_with_the_copies_and_memory_hardly(tmp_path: Path) -> None:
    """The README's data set (960 tasks x 1001) would take an hour or all memory; this is a fiftieth of it."""
    make_arc(tmp_path / "arc", training=13, evaluation=7)
    code = """
import resource
from dataset.build_arc_dataset import *
from tests.helpers.memory import peak_bytes

def seconds(num_aug):
    began = resource.getrusage(0).ru_utime
    build(ArcOptions(dataset_dirs=['arc'], output_dir=f"out-{num_aug}", num_aug=num_aug))
    return resource.getrusage(0).ru_utime - began

some, before = seconds(100), peak_bytes()
print(seconds(1000) / some, peak_bytes() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    times, grown = map(float, result.stdout.split())
    assert grown < 100e6, f"{grown / 1e6:.0f} MB"
    assert times < 30, f"ten times as many copies take {times:.1f} times as long"
