"""The Sudoku builder: what it writes, what it refuses, and that no accident leaves half a data set."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError, explain
from dataset import build_sudoku_dataset as sudoku
from dataset import csv_puzzles
from dataset import writer as common
from dataset.puzzle_dataset import PuzzleDataset
from dataset.symmetries import Symmetries
from tests.helpers.disks import DISK_BYTES, small_disk
from tests.helpers.hub import GATED, serve_hub
from tests.helpers.sources import (
    ROOT,
    assert_one_line_error,
    folder_bytes,
    make_source,
    run_script,
    sudoku_rows,
    write_csv,
)

ROWS = [{9 * r + c for c in range(9)} for r in range(9)]
COLS = [{9 * r + c for r in range(9)} for c in range(9)]
BOXES = [{9 * r + c for r in range(b, b + 3) for c in range(d, d + 3)} for b in (0, 3, 6) for d in (0, 3, 6)]


def build(source: Path, out: Path, **options: Any) -> Path:
    sudoku.build(sudoku.SudokuOptions(source_repo=str(source), output_dir=str(out), **options))
    return out


def load(out: Path, split: str, kind: str) -> np.ndarray:
    return np.load(out / split / f"all__{kind}.npy")


def tokens(text: str) -> list[int]:
    return [1 if c in ".0" else int(c) + 1 for c in text]


def is_solution(cells: list[int]) -> bool:
    return all({cells[i] for i in unit} == set(range(1, 10)) for unit in ROWS + COLS + BOXES)


def test_files_are_the_documented_format(source: Path, tmp_path: Path) -> None:
    """Other programs that read the HRM data format would fail on our files, or read other puzzles."""
    out = build(source, tmp_path / "out", num_aug=3)
    assert json.loads((out / "identifiers.json").read_text()) == ["<blank>"]
    for split, puzzles, copies, seed in (("train", 12, 4, 1), ("test", 7, 1, 2)):
        metadata = json.loads((out / split / "dataset.json").read_text())
        assert metadata == {
            "pad_id": 0,
            "ignore_label_id": 0,
            "blank_identifier_id": 0,
            "vocab_size": 11,
            "seq_len": 81,
            "num_puzzle_identifiers": 1,
            "total_groups": puzzles,
            "mean_puzzle_examples": 1.0,
            "sets": ["all"],
            "kind": "sudoku",
            "box": [3, 3],
            "command": f"python dataset/build_sudoku_dataset.py --source-repo {source} --num-aug 3",
        }
        n = puzzles * copies
        inputs, labels = load(out, split, "inputs"), load(out, split, "labels")
        assert inputs.shape == labels.shape == (n, 81)
        assert inputs.dtype == labels.dtype == np.uint8
        # The first copy of each puzzle is the puzzle itself, in source order.
        rows = sudoku_rows(puzzles, seed=seed)
        assert inputs[::copies].tolist() == [tokens(question) for question, _, _ in rows]
        assert labels[::copies].tolist() == [tokens(answer) for _, answer, _ in rows]
        for kind, expected in (
            ("puzzle_identifiers", [0] * n),
            ("puzzle_indices", list(range(n + 1))),
            ("group_indices", list(range(0, n + 1, copies))),
        ):
            array = load(out, split, kind)
            assert array.dtype == np.int32
            assert array.tolist() == expected


def test_every_augmented_puzzle_is_a_symmetry_of_its_original(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training would see puzzles that no longer are Sudoku, or whose answer doesn't solve them."""
    used: list[Symmetries] = []
    draw = sudoku.random_symmetries

    def recording(rng: np.random.Generator, n: int) -> Symmetries:
        used.append(draw(rng, n))
        return used[-1]

    monkeypatch.setattr(sudoku, "random_symmetries", recording)
    monkeypatch.setattr(csv_puzzles, "WRITE_CELLS", 8100)  # several chunks
    out = build(source, tmp_path / "out", num_aug=20)
    inputs, labels = (load(out, "train", kind).reshape(12, 21, 81).tolist() for kind in ("inputs", "labels"))
    assert len(used) > 1
    symmetries = itertools.chain.from_iterable(zip(s.cell_source, s.value_map, strict=True) for s in used)
    for puzzle, copy in itertools.product(range(12), range(1, 21)):
        cell_source, value_map = (part.tolist() for part in next(symmetries))
        question, answer = inputs[puzzle][copy], labels[puzzle][copy]
        for boards, original in ((question, inputs[puzzle][0]), (answer, labels[puzzle][0])):
            assert boards == [value_map[original[source] - 1] + 1 for source in cell_source]
        assert value_map[0] == 0
        assert sorted(value_map) == list(range(10))
        moved = [[{cell_source[i] for i in unit} for unit in units] for units in (ROWS, COLS, BOXES)]
        assert all(unit in BOXES for unit in moved[2])
        assert all(unit in ROWS for unit in moved[0]) or all(unit in COLS for unit in moved[0])
        assert all(unit in ROWS for unit in moved[1]) or all(unit in COLS for unit in moved[1])
        assert is_solution([token - 1 for token in answer])
        assert all(q in (1, a) for q, a in zip(question, answer, strict=True)), "a clue was lost or changed"
        assert question.count(1) == inputs[puzzle][0].count(1)
    assert next(symmetries, None) is None


def test_symmetries_are_drawn_from_the_whole_group() -> None:
    """Fewer kinds of copies would mean less augmentation than published, and a lower score."""
    n = 20_000
    symmetries = sudoku.random_symmetries(np.random.default_rng(0), n)
    table = sudoku.LINE_PERMUTATIONS
    assert len({tuple(line) for line in table.tolist()}) == 1296
    grid = symmetries.cell_source.reshape(n, 9, 9).astype(int)
    transposed = grid[:, 0, 1] // 9 != grid[:, 0, 0] // 9
    assert abs(transposed.mean() - 0.5) < 0.02
    lines = np.where(transposed[:, None], grid[:, :, 0] % 9, grid[:, :, 0] // 9)
    assert len({tuple(line) for line in lines.tolist()}) == 1296, "20,000 draws miss one of 1296 row orders"
    # Each digit goes to each digit equally often: 2222 expected, standard deviation 44.
    for digit in range(1, 10):
        counts = np.bincount(symmetries.value_map[:, digit], minlength=10)
        assert counts[0] == 0
        assert abs(counts[1:] - n / 9).max() < 250
    assert len({tuple(row) for row in symmetries.cell_source.tolist()}) > 0.95 * n


def test_same_seed_same_bytes(source: Path, tmp_path: Path) -> None:
    """Two people with the same command would train on different data."""
    options = {"num_aug": 5, "subsample_size": 6}
    first = folder_bytes(build(source, tmp_path / "a", seed=3, **options))
    assert first == folder_bytes(build(source, tmp_path / "b", seed=3, **options))
    other = folder_bytes(build(source, tmp_path / "c", seed=4, **options))
    assert first["train/all__inputs.npy"] != other["train/all__inputs.npy"]


def test_subsample_takes_distinct_training_puzzles_only(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test set would shrink, or the training set hold repeats; or the choice would always be the first rows."""
    original = {tuple(tokens(question)) for question, _, _ in sudoku_rows(12, seed=1)}
    chosen = Counter[tuple[int, ...]]()
    for seed in range(30):
        out = build(source, tmp_path / "out", subsample_size=5, seed=seed, overwrite=True)
        train = {tuple(row) for row in load(out, "train", "inputs").tolist()}
        assert len(train) == 5
        assert train <= original
        chosen.update(train)
    assert len(load(out, "test", "inputs")) == 7
    assert set(chosen) == original, "some puzzle was never chosen in 30 draws of 5 out of 12"
    # The choice doesn't depend on how the file is cut into chunks.
    whole = folder_bytes(build(source, tmp_path / "whole", subsample_size=5))
    read = csv_puzzles.read_csv
    monkeypatch.setattr(sudoku, "read_csv", lambda path, names: read(path, names, chunk_rows=2))
    assert folder_bytes(build(source, tmp_path / "chunks", subsample_size=5)) == whole
    assert len(load(build(source, tmp_path / "all", subsample_size=99), "train", "inputs")) == 12


def test_min_difficulty_keeps_ratings_from_there_on(source: Path, tmp_path: Path) -> None:
    """An off-by-one would add or lose the puzzles of exactly that rating."""
    out = build(source, tmp_path / "out", min_difficulty=4)
    expected = [tokens(question) for question, _, rating in sudoku_rows(12, seed=1) if rating >= 4]
    assert load(out, "train", "inputs").tolist() == expected
    assert len(load(out, "test", "inputs")) == 3


def test_blanks_may_be_dots_or_zeros_and_files_windows_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CSV written elsewhere (zeros, CRLF, a byte order mark, quotes, columns in another order) would be refused."""
    make_source(tmp_path / "plain" / "source")
    lines = ['answer,question,"rating",source']
    for question, answer, rating in sudoku_rows(12, seed=1):
        lines.append(f'{answer},"{question.replace(".", "0")}",{rating},"a, b"')
    other = make_source(tmp_path / "other" / "source")
    (other / "train.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    built = []
    for name in ("plain", "other"):
        monkeypatch.chdir(tmp_path / name)  # the same command
        built.append(folder_bytes(build(Path("source"), Path("out"))))
    assert built[0] == built[1]


QUESTION, ANSWER, _ = sudoku_rows(1, seed=1)[0]
CLUE = next(i for i, c in enumerate(QUESTION) if c != ".")
WRONG_CLUE = str(int(QUESTION[CLUE]) % 9 + 1)
# Boards of which only the columns (rows, boxes) are wrong.
BAD_COLUMNS = "".join(str((3 * (r % 3) + c) % 9 + 1) for r in range(9) for c in range(9))
BAD_ROWS = "".join(str((3 * (c % 3) + r) % 9 + 1) for r in range(9) for c in range(9))
BAD_BOXES = "".join(str((r + c) % 9 + 1) for r in range(9) for c in range(9))
MALFORMED = {
    "short question": ((QUESTION[:-1], ANSWER, 0), [":3:", "question", "80 characters", "81"]),
    "long answer": ((QUESTION, ANSWER + "1", 0), [":3:", "answer", "82 characters", "81"]),
    "bad character": (("x" + QUESTION[1:], ANSWER, 0), [":3:", "question", "'x'", "position 1", "digit"]),
    "not ASCII": (("é" + QUESTION[1:], ANSWER, 0), [":3:", "'é'", "position 1"]),
    "blank in answer": ((QUESTION, ANSWER[:5] + "0" + ANSWER[6:], 0), [":3:", "answer", "'0'", "position 6", "1 to 9"]),
    "contradiction": (
        (QUESTION[:CLUE] + WRONG_CLUE + QUESTION[CLUE + 1 :], ANSWER, 0),
        [":3:", "contradicts", f"position {CLUE + 1}", ANSWER[CLUE], WRONG_CLUE],
    ),
    "bad columns": (("." * 81, BAD_COLUMNS, 0), [":3:", "not a solved Sudoku"]),
    "bad rows": (("." * 81, BAD_ROWS, 0), [":3:", "not a solved Sudoku"]),
    "bad boxes": (("." * 81, BAD_BOXES, 0), [":3:", "not a solved Sudoku"]),
    "bad rating": ((QUESTION, ANSWER, "hard"), [":3:", "rating", "'hard'", "whole number"]),
    "extra field": ((QUESTION, ANSWER, "1,2"), [":3:", "5 fields", "expected 4"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_row_names_file_line_and_finding(name: str, source: Path, tmp_path: Path) -> None:
    """A user with a broken file would have to search a million lines for it, or train on garbage."""
    row, parts = MALFORMED[name]
    write_csv(source / "train.csv", [*sudoku_rows(1, seed=5), row, *sudoku_rows(2, seed=6)])  # type: ignore[list-item]
    with pytest.raises(UserError) as caught:
        build(source, tmp_path / "out", min_difficulty=0)
    for part in [str(source / "train.csv"), *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"], "a failed build left something behind"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"source,question,answer,rating\n", "holds no puzzles"),
        (b"source,question,solution,rating\n", "no column 'answer'"),
        (b"source,question,answer\na," + QUESTION.encode() + b"\n", ":2: 2 fields, expected 3"),
        (b"source,question,answer\n\xff\xfe", "not UTF-8"),
    ],
)
def test_malformed_file_is_named(content: bytes, part: str, source: Path, tmp_path: Path) -> None:
    """An empty or foreign file would end in a traceback, or in an empty data set."""
    (source / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=part) as caught:
        build(source, tmp_path / "out")
    assert str(source / "train.csv") in str(caught.value)


def test_no_puzzle_is_hard_enough(source: Path, tmp_path: Path) -> None:
    """The user would get an empty data set instead of being told that the bound is too high."""
    with pytest.raises(UserError, match="no puzzles rated 1000 or more"):
        build(source, tmp_path / "out", min_difficulty=1000)


# ---------------------------------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_readme_commands_with_the_hub(tmp_path: Path) -> None:
    """The README's two lines would not work as typed: downloads, defaults and output folders included."""
    with serve_hub("sapientinc/sudoku-extreme", make_source(tmp_path / "hub"), "dataset") as hub:
        env: Any = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache")}
        for command, folder, examples in (
            (
                "python dataset/build_sudoku_dataset.py --output-dir data/sudoku-extreme-1k-aug-1000"
                "  --subsample-size 1000 --num-aug 1000",
                "data/sudoku-extreme-1k-aug-1000",
                12 * 1001,
            ),
            ("python dataset/build_sudoku_dataset.py", "data/sudoku-extreme-full", 12),
        ):
            result = run_script(command, tmp_path, terminal=True, **env)
            assert result.returncode == 0, result.stderr
            data = PuzzleDataset(tmp_path / folder, "train", global_batch_size=1)
            assert data.num_examples == examples
            assert data.metadata.command == " ".join(command.replace(f"--output-dir {folder}", "").split())
            assert PuzzleDataset(tmp_path / folder, "test", global_batch_size=1).num_examples == 7
            assert "100%" in result.stderr, "no progress was shown"
        result = run_script(
            "python dataset/build_sudoku_dataset.py --overwrite --source-repo nobody/nothing", tmp_path, **env
        )
        assert_one_line_error(result, "nobody/nothing", "HTTP 404", "--source-repo", "folder")
        result = run_script("python dataset/build_sudoku_dataset.py --overwrite", tmp_path, HF_ENDPOINT="http://[::1")
        assert_one_line_error(result, "HF_ENDPOINT='http://[::1'")
        hub.refusals["/datasets/some"] = GATED
        result = run_script(
            "python dataset/build_sudoku_dataset.py --overwrite --source-repo some/puzzles", tmp_path, **env
        )
        assert_one_line_error(result, "some/puzzles", "on request", "hf auth login", "--source-repo", "folder")


@pytest.mark.slow
def test_no_network_is_one_line(tmp_path: Path) -> None:
    """Without a network the user would get a page of HTTP tracebacks."""
    env: Any = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    result = run_script("python dataset/build_sudoku_dataset.py", tmp_path, **env)
    assert_one_line_error(result, "sapientinc/sudoku-extreme", "network", "train.csv and test.csv")
    assert not (tmp_path / "data" / "sudoku-extreme-full").exists()


@pytest.mark.slow
def test_bad_options_are_one_line(source: Path, tmp_path: Path) -> None:
    """A typing mistake would end in a traceback or, worse, in another data set than asked for."""
    (source / "test.csv").unlink()
    for options, parts in (
        ("--source-repo source", ["source/test.csv is missing", "train.csv and test.csv"]),
        ("--source-repo source/train.csv", ["is a file", "folder"]),
        ("--source-repo ./nowhere/at/all", ["'./nowhere/at/all'", "owner/name"]),
        ("--source-repo source --num-aug -1", ["--num-aug is -1", "at least 0"]),
        ("--source-repo source --subsample-size 0", ["--subsample-size is 0", "at least 1"]),
        ("--source-repo source --seed -5", ["--seed is -5", "at least 0"]),
        ("--source-repo source --output-dir source", ["source is not empty", "train.csv", "new folder"]),
        ("--source-repo source --output-dir source/train.csv", ["train.csv is a file"]),
        ("--source-repo ~no-such-user/source", ["~no-such-user is no known home"]),
    ):
        result = run_script(f"python dataset/build_sudoku_dataset.py {options}", tmp_path)
        assert_one_line_error(result, *parts)
    result = run_script("python dataset/build_sudoku_dataset.py --num-aug many", tmp_path)
    assert result.returncode == 2
    assert "--num-aug: invalid int value: 'many'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("script", ["build_sudoku_dataset", "build_mini_sudoku_dataset"])
def test_script_and_import_reach_the_same_modules(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second copy of dataset.writer would make `except UserError` miss, and its folder shadow other modules."""
    folder = str(ROOT / "dataset")
    monkeypatch.setattr(sys, "path", [folder, *sys.path])  # as Python does for a script
    namespace = runpy.run_path(f"{folder}/{script}.py", run_name="script")
    assert namespace["DatasetWriter"] is common.DatasetWriter
    assert folder not in sys.path


# ---------------------------------------------------------------------------------------------------- accidents


def test_failure_in_the_middle_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later command would take half a data set for a whole one; or the old one would be lost."""
    add = common.DatasetWriter.add

    def add_then_fail(self: common.DatasetWriter, split: str, *args: Any, **kwargs: Any) -> None:
        if split == "test":
            raise OSError(28, "No space left on device")
        add(self, split, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(common.DatasetWriter, "add", add_then_fail)
        with pytest.raises(OSError, match="No space left"):
            build(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = folder_bytes(build(source, tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(common.DatasetWriter, "add", add_then_fail)
        with pytest.raises(OSError, match="No space left"):
            build(source, tmp_path / "out", num_aug=2, overwrite=True)
    assert folder_bytes(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.slow
def test_kill_in_the_middle_leaves_the_old_data_set_and_no_litter(source: Path, tmp_path: Path) -> None:
    """After a power cut or kill -9 the user would train on half a data set, or find gigabytes of leftovers."""
    out = build(source, tmp_path / "out")
    before = folder_bytes(out)
    script = ROOT / "dataset" / "build_sudoku_dataset.py"
    options = ["--source-repo", str(source), "--output-dir", str(out), "--num-aug", "100000", "--overwrite"]
    with subprocess.Popen([sys.executable, str(script), *options], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        partial = tmp_path / f".out.partial-{process.pid}"
        written = partial / "train" / "all__inputs.npy"
        while not written.exists() or written.stat().st_size < 1_000_000:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert partial.is_dir(), "the kill came too late to test anything"
    assert folder_bytes(out) == before
    with pytest.raises(UserError, match="half-built"):
        PuzzleDataset(partial, "train", global_batch_size=1)
    build(source, out, num_aug=1, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert PuzzleDataset(out, "train", global_batch_size=1).num_examples == 24


def test_a_build_removes_what_one_killed_at_its_end_has_left(source: Path, tmp_path: Path) -> None:
    """An old data set, renamed to make room for the new one, would stay hidden on the disk for ever."""
    build(source, tmp_path / "out").rename(tmp_path / ".out.replaced")
    build(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("room", ["some", "none"])
def test_a_full_disk_is_left_as_it_was(room: str, source: Path, tmp_path: Path) -> None:
    """The half-built data set kept it full, and the message was an errno."""
    with small_disk(tmp_path / "disk") as reason:
        if room == "none":
            with pytest.raises(OSError, match=reason):
                (tmp_path / "disk" / "filler").write_bytes(bytes(4 * DISK_BYTES))
        held = sorted(path.name for path in (tmp_path / "disk").iterdir())
        with pytest.raises(OSError, match=reason) as caught:
            build(source, tmp_path / "disk" / "out", num_aug=1000)
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == held
        text = explain(caught.value)
        assert text is not None
        assert text.startswith(str(tmp_path / "disk"))
        assert text.endswith(f": {reason}; free some space, or choose a folder on another disk")


def test_a_build_beside_a_running_one_leaves_it_alone(source: Path, tmp_path: Path) -> None:
    """Two builds at once would delete each other's files."""
    running = tmp_path / f".out.partial-{os.getppid()}"
    running.mkdir()
    build(source, tmp_path / "out")
    assert running.is_dir()


def test_a_data_set_is_replaced_only_on_demand(source: Path, tmp_path: Path) -> None:
    """A command typed once more would destroy the data set that a training run of days belongs to."""
    out = build(source, tmp_path / "out")
    before = folder_bytes(out)
    with pytest.raises(UserError) as caught:
        build(source, out, num_aug=1)
    expected = f"{out} is a data set already: --overwrite replaces it, or give --output-dir a new folder"
    assert str(caught.value) == expected
    assert folder_bytes(out) == before
    build(source, out, num_aug=1, overwrite=True)
    assert folder_bytes(out) == folder_bytes(build(source, tmp_path / "other", num_aug=1))


@pytest.mark.parametrize("stray", ["notes.txt", "train/notes.txt", "train"])
def test_a_folder_with_other_things_is_never_replaced(stray: str, source: Path, tmp_path: Path) -> None:
    """A mistyped --output-dir would delete the user's files."""
    out = tmp_path / "out"
    if stray != "train":
        build(source, out)
    (out / stray).parent.mkdir(exist_ok=True)
    (out / stray).write_text("mine")
    before = folder_bytes(out)
    with pytest.raises(UserError, match="not empty and not only a data set"):
        build(source, out, overwrite=True)
    assert folder_bytes(out) == before


def test_output_dir_may_be_a_link_to_another_disk(source: Path, tmp_path: Path) -> None:
    """A rebuild would replace the user's link by a folder on the small disk."""
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    for num_aug in (0, 1):
        build(source, tmp_path / "link", num_aug=num_aug, overwrite=True)
        assert (tmp_path / "link").is_symlink()
        examples = PuzzleDataset(tmp_path / "disk" / "real", "train", global_batch_size=1).num_examples
        assert examples == 12 * (1 + num_aug)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


@pytest.mark.slow
def test_time_grows_with_the_copies_and_memory_hardly(tmp_path: Path) -> None:
    """The README's data set (1000 x 1001) would take minutes or gigabytes; this is a tenth of it."""
    make_source(tmp_path / "source", train=100)
    code = """
import resource
from dataset.build_sudoku_dataset import *
from tests.helpers.memory import peak_bytes

def seconds(num_aug):
    began = resource.getrusage(0).ru_utime
    build(SudokuOptions(source_repo='source', output_dir=f"out-{num_aug}", num_aug=num_aug))
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
    assert grown < 150e6, f"{grown / 1e6:.0f} MB"
    assert times < 30, f"ten times as many copies take {times:.1f} times as long"
