"""Further fields in the batch: from the writer through the files to the batches of training and evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from dataset.puzzle_dataset import PuzzleDataset, padding_arrays
from dataset.writer import DatasetWriter
from tests.helpers.sources import example_numbers, write_split

FORMATS = {"rating": {"shape": [], "dtype": "int32"}, "hint": {"shape": [2, 3], "dtype": "float32"}}
GROUPS = [[3, 2], [4], [1, 5, 2], [2], [6, 1], [3]]
EXAMPLES = 29


def values_of(examples: np.ndarray) -> dict[str, np.ndarray]:
    """The entries of some examples: they tell the example's number."""
    return {
        "rating": 100_000 + examples,
        "hint": examples[:, None, None] + np.arange(6, dtype=np.float64).reshape(2, 3) / 8,
    }


def split_with_fields(folder: Path) -> Path:
    write_split(folder, GROUPS, fields=FORMATS)
    for name, array in values_of(np.arange(EXAMPLES)).items():
        np.save(folder / f"all__{name}.npy", array)
    return folder


def write(path: Path, *fields: dict[str, np.ndarray] | None, seed: int = 0) -> Path:
    """A data set of 10 puzzles a split, whose calls of `add` bring these fields in turn."""
    tokens = np.random.default_rng(seed).integers(1, 9, (10, 4), np.uint8)
    ones = np.ones(10, np.int32)
    with DatasetWriter(path, seq_len=4, vocab_size=9) as writer:
        for number, split in enumerate(("train", "test")):
            writer.add(
                split,
                tokens,
                tokens,
                puzzle_identifiers=0 * ones,
                examples_per_puzzle=ones,
                puzzles_per_group=ones,
                fields=fields[number % len(fields)],
            )
    return path


def test_every_batch_holds_the_entries_of_its_examples(tmp_path: Path) -> None:
    """A loss would be weighted by another puzzle's rating; or the last batch have other shapes than the others."""
    for split in ("train", "test"):
        split_with_fields(tmp_path / split)
    train = PuzzleDataset(tmp_path, "train", global_batch_size=8, rank=1, num_ranks=2)
    test = PuzzleDataset(tmp_path, "test", global_batch_size=8)
    batches = [*train.train_batches(0, epochs=5), *test.eval_batches()]
    assert len(batches) > 5
    assert batches[-1].num_examples == 5
    for batch in batches:
        padding = padding_arrays(test.metadata, len(batch.inputs))
        assert list(batch.arrays) == ["inputs", "labels", "puzzle_identifiers", "rating", "hint"]
        assert {n: (a.shape, a.dtype) for n, a in batch.arrays.items()} == {
            n: (a.shape, a.dtype) for n, a in padding.items()
        }
        real = batch.num_examples
        for name, expected in values_of(np.array(example_numbers(batch.inputs[:real]))).items():
            np.testing.assert_array_equal(batch.arrays[name][:real], expected)
            assert not batch.arrays[name][real:].any()
    assert (batches[-1].inputs[5:] == 7).all()
    assert (batches[-1].labels[5:] == -100).all()


def test_what_the_writer_is_given_is_what_batches_hold(tmp_path: Path) -> None:
    """A builder of one's own would need code elsewhere to get its numbers into training."""
    fields = {"rating": np.arange(10, dtype=np.int64) * 1000, "weight": np.linspace(0, 1, 10)}
    path = write(tmp_path / "data", fields)
    for split in ("train", "test"):
        assert json.loads((path / split / "dataset.json").read_text())["fields"] == {
            "rating": {"shape": [], "dtype": "int32"},
            "weight": {"shape": [], "dtype": "float32"},
        }
        (batch,) = PuzzleDataset(path, split, global_batch_size=10).eval_batches()
        for name, dtype in (("rating", np.int32), ("weight", np.float32)):
            assert batch.arrays[name].dtype == dtype
            np.testing.assert_array_equal(batch.arrays[name], fields[name].astype(dtype))
    assert "fields" not in json.loads((write(tmp_path / "none", None) / "train" / "dataset.json").read_text())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (({"inputs": np.ones(10, int)},), "'inputs' can't be named so"),
        (({"group_indices": np.ones(10, int)},), "'group_indices' can't be named so"),
        (({"../rating": np.ones(10, int)},), "can't be named so"),
        (({"rating": np.ones(9, int)},), "'rating' has 9 entries, expected 10"),
        (({"rating": np.array(["easy"] * 10)},), "'rating' holds <U4, expected integers or floats"),
        (({"rating": np.full(10, 1 << 31)},), "fit int32"),
        (({"rating": np.ones(10, int)}, None), "expected .*rating.* as in the first call"),
        ((None, {"rating": np.ones(10, int)}), "expected {} as in the first call"),
        (({"rating": np.ones(10, int)}, {"rating": np.ones(10)}), "float32.* as in the first call"),
        (({"rating": np.ones(10, int)}, {"rating": np.ones((10, 1), int)}), "as in the first call"),
    ],
)
def test_the_writer_refuses_what_no_batch_could_hold(
    fields: tuple[dict[str, np.ndarray] | None, ...], message: str, tmp_path: Path
) -> None:
    """The loader would refuse, or training read garbage from, a data set that took an hour to build."""
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "data", *fields)
    assert not list(tmp_path.iterdir())


def rewrite(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"all__{name}.npy", change(np.load(folder / f"all__{name}.npy")))


def announce(name: str, field: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / "dataset.json").read_text())
        values["fields"][name] = field
        (folder / "dataset.json").write_text(json.dumps(values))

    return apply


NUMBER = {"shape": [], "dtype": "int32"}


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda folder: (folder / "all__rating.npy").unlink(), ["all__rating.npy is missing"]),
        (rewrite("rating", lambda array: array[:28]), ["all__rating.npy: shape (28,), expected (29,)"]),
        (rewrite("hint", lambda array: array[..., :2]), ["all__hint.npy: shape (29, 2, 2), expected (29, 2, 3)"]),
        (rewrite("rating", lambda array: array / 2), ["all__rating.npy holds float64, expected integers"]),
        (rewrite("hint", lambda array: array.astype("S8")), ["all__hint.npy holds |S8, expected numbers"]),
        (rewrite("rating", lambda array: array << 32), ["all__rating.npy: entry 429496729600000", "int32"]),
        (announce("rating", {"shape": [], "dtype": "int64"}), ["fields.rating.dtype", "'int64'"]),
        (announce("rating", {"shape": [0], "dtype": "int32"}), ["fields.rating.shape.0"]),
        (announce("labels", NUMBER), ["fields has 'labels', expected names"]),
        (announce("../../mine", NUMBER), ["fields has '../../mine', expected names"]),
    ],
)
def test_broken_fields_are_refused_by_name(damage: Callable[[Path], None], parts: list[str], tmp_path: Path) -> None:
    """Training would end in a traceback, or go on with wrong numbers."""
    folder = split_with_fields(tmp_path / "train")
    PuzzleDataset(tmp_path, "train", global_batch_size=4)
    damage(folder)
    with pytest.raises(UserError) as caught:
        PuzzleDataset(tmp_path, "train", global_batch_size=4)
    for part in [str(folder), *parts, "; build it with"]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    """A run would be resumed with other ratings; or refused a data set that somebody stored as other integers."""

    def fingerprint(name: str, fields: dict[str, np.ndarray] | None) -> str:
        return PuzzleDataset(write(tmp_path / name, fields), "train", global_batch_size=2).fingerprint()

    rating, weight = np.arange(10), np.ones(10)
    found = {
        fingerprint("none", None),
        fingerprint("rating", {"rating": rating}),
        fingerprint("other", {"rating": rating + 1}),
        fingerprint("named", {"level": rating}),
        fingerprint("floats", {"rating": rating * 1.0}),
        fingerprint("two", {"rating": rating, "weight": weight}),
    }
    assert len(found) == 6
    assert fingerprint("order", {"weight": weight, "rating": rating}) in found
    file = tmp_path / "rating" / "train" / "all__rating.npy"
    np.save(file, np.load(file).astype(np.uint8))
    assert PuzzleDataset(tmp_path / "rating", "train", global_batch_size=2).fingerprint() in found


def test_without_fields_the_fingerprint_is_the_one_in_older_checkpoints(tmp_path: Path) -> None:
    """No run that was begun before there were fields could be resumed."""
    write_split(tmp_path / "train", GROUPS)
    data = PuzzleDataset(tmp_path, "train", global_batch_size=4)
    assert data.fingerprint() == "85cbd502407af9e4473c0702fa93f5a0970d8065abc8ebc9d7183c6522799af9"


def test_padding_needs_no_more_than_sizes() -> None:
    """Shapes could not be known without a data set."""
    sizes: Any = SimpleNamespace(seq_len=4, pad_id=7, blank_identifier_id=3)
    arrays = padding_arrays(sizes, 2)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "inputs": [[7] * 4] * 2,
        "labels": [[-100] * 4] * 2,
        "puzzle_identifiers": [3, 3],
    }
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
