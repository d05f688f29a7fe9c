"""The fingerprint of a split: the same for the same puzzles wherever they lie, another for any others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset.puzzle_dataset import FINGERPRINT_ROWS, PuzzleDataset
from tests.helpers.tiny_data import make_tiny_data

KINDS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")


def fingerprint(folder: Path, split: str = "train") -> str:
    return PuzzleDataset(folder, split, global_batch_size=8).fingerprint()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_tiny_data(tmp_path / "data", identifiers=3)


def test_a_copy_has_the_same(data: Path, tmp_path: Path) -> None:
    """A data set that was moved, or built again by the same command, is the one that the run was trained on."""
    shutil.copytree(data, tmp_path / "copy")
    again = make_tiny_data(tmp_path / "again", identifiers=3)
    for split in ("train", "test"):
        assert fingerprint(data, split) == fingerprint(tmp_path / "copy", split) == fingerprint(again, split)
    assert fingerprint(data, "train") != fingerprint(data, "test")


def test_what_belongs_to_a_run_is_no_part_of_it(data: Path) -> None:
    """It would change with the batch size, of which it says nothing."""
    other = PuzzleDataset(data, "train", global_batch_size=16, seed=5, rank=1, num_ranks=2)
    assert other.fingerprint() == fingerprint(data)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_another_integer_type_of_the_files_has_the_same(data: Path, dtype: type) -> None:
    """Files made by the PyTorch code hold int64, ours uint8."""
    before = fingerprint(data)
    for kind in KINDS:
        path = data / "train" / f"all__{kind}.npy"
        np.save(path, np.load(path).astype(dtype))
    assert fingerprint(data) == before


def test_keys_that_a_later_format_adds_are_no_part_of_it(data: Path) -> None:
    """A data set would be refused after an update of this code that did not change it."""
    before = fingerprint(data)
    path = data / "train" / "dataset.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"kind": "sudoku", "command": "python dataset/build_sudoku_dataset.py"}
        )
    )
    assert fingerprint(data) == before


def change(kind: str, alter: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "train" / f"all__{kind}.npy"
        array = np.load(path)
        alter(array)
        np.save(path, array)

    return apply


def swap(array: np.ndarray) -> None:
    array[[0, 1]] = array[[1, 0]]


def metadata(**changes: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "train" / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def one_group(folder: Path) -> None:
    np.save(folder / "train" / "all__group_indices.npy", np.array([0, 64], np.int32))
    metadata(total_groups=1)(folder)


@pytest.mark.parametrize(
    "alter",
    [
        change("inputs", lambda array: array[63].fill(1)),
        change("labels", lambda array: array[0].fill(2)),
        change("inputs", swap),
        change("puzzle_identifiers", swap),
        one_group,
        metadata(vocab_size=7),
        metadata(num_puzzle_identifiers=4),
        metadata(pad_id=1),
    ],
    ids=["last-input", "first-label", "order", "identifiers", "groups", "vocab_size", "more-identifiers", "pad_id"],
)
def test_other_puzzles_or_metadata_have_another(data: Path, alter: Callable[[Path], None]) -> None:
    """A run would go on with puzzles that are not its own, and identifiers that mean something else."""
    before = fingerprint(data)
    alter(data)
    assert fingerprint(data) != before


def test_a_large_split_is_told_apart_by_a_sample(tmp_path: Path) -> None:
    """A data set of another seed differs nearly everywhere; reading a gigabyte at each start would take its time."""
    rows = 3 * FINGERPRINT_ROWS

    def make(name: str, seed: int, length: int = rows) -> Path:
        folder = make_tiny_data(tmp_path / name)
        tokens = np.random.default_rng(seed).integers(1, 6, (length, 16), np.uint8)
        for kind in ("inputs", "labels"):
            np.save(folder / "train" / f"all__{kind}.npy", tokens)
        np.save(folder / "train" / "all__puzzle_identifiers.npy", np.zeros(length, np.int32))
        for kind in ("puzzle_indices", "group_indices"):
            np.save(folder / "train" / f"all__{kind}.npy", np.arange(length + 1, dtype=np.int32))
        metadata(total_groups=length)(folder)
        return folder

    first = fingerprint(make("first", 0))
    assert fingerprint(make("again", 0)) == first
    assert fingerprint(make("other", 1)) != first
    assert fingerprint(make("shorter", 0, rows - 1)) != first
