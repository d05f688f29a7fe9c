"""The loader: the training and evaluation order as documented, for any rank count, and every broken file refused."""

from __future__ import annotations

import json
import os
import pickle
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from dataset.dataset_files import read_rows
from dataset.puzzle_dataset import Batch, PuzzleDataset, _PlannedBatch
from tests.helpers.sources import example_numbers, write_split

GENERAL_REMEDY = "; build it with a script in dataset/, build_*_dataset.py (README, Dataset Preparation)"
ARC_LIKE = [[3, 2], [4], [1, 5, 2], [2], [6, 1], [3]]


def rows(batches: Iterable[Batch]) -> list[list[int]]:
    return [example_numbers(batch.inputs[: batch.num_examples]) for batch in batches]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.set_name == y.set_name
        and x.num_examples == y.num_examples
        and x.arrays.keys() == y.arrays.keys()
        and all(np.array_equal(array, y.arrays[name]) for name, array in x.arrays.items())
        for x, y in zip(a, b, strict=True)
    )


def read_literally(batches: list[list[int]], groups: list[list[int]], size: int, epochs: int) -> None:
    """Check one set's training batches (as example numbers) by walking through them one group at a time."""
    puzzle_of: dict[int, int] = {}
    start_of: list[int] = []
    group_of: list[int] = []
    for group, puzzles in enumerate(groups):
        for examples in puzzles:
            start_of.append(len(puzzle_of))
            puzzle_of.update({len(puzzle_of) + k: len(group_of) for k in range(examples)})
            group_of.append(group)
    sizes = [examples for puzzles in groups for examples in puzzles]
    walk: list[int] = []
    for batch in batches:
        assert len(batch) == size
        at = 0
        while at < size:
            puzzle = puzzle_of[batch[at]]
            take = min(sizes[puzzle], size - at)
            taken = batch[at : at + take]
            assert len(set(taken)) == take, "an example was drawn twice from one puzzle"
            assert all(puzzle_of[example] == puzzle for example in taken)
            walk.append(group_of[puzzle])
            at += take
    for epoch in range(epochs):
        part = walk[epoch * len(groups) : (epoch + 1) * len(groups)]
        assert len(set(part)) == len(part), "a group came twice before all had their turn"
    left = len(groups) * epochs - len(walk)
    assert left >= 0
    # What was dropped at the end didn't fill a batch: even if each left group gave its smallest puzzle.
    assert left * min(sizes) < size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=8),
    size=st.integers(1, 12),
    epochs=st.integers(1, 6),
    iteration=st.integers(0, 3),
    seed=st.integers(0, 2**40),
)
def test_training_order_is_the_documented_one(
    groups: list[list[int]],
    size: int,
    epochs: int,
    iteration: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Training would weigh puzzles otherwise than the published code: results could not be compared."""
    path = tmp_path_factory.mktemp("data")
    write_split(path / "train", groups, set_names=("one", "two"))
    data = PuzzleDataset(path, "train", global_batch_size=size, seed=seed)
    try:
        batches = list(data.train_batches(iteration, epochs=epochs))
    except UserError:
        assert epochs * sum(min(sizes) for sizes in groups) < size
        return
    names = [batch.set_name for batch in batches]
    assert names == sorted(names), "the sets did not come in turn"
    for name in ("one", "two"):
        mine = [batch for batch in batches if batch.set_name == name]
        read_literally(rows(mine), groups, size, epochs)
    sizes = [examples for group in groups for examples in group]
    identifier_of = np.repeat(np.arange(len(sizes)) + 1, sizes)
    for batch, examples in zip(batches, rows(batches), strict=True):
        assert batch.num_examples == size
        assert batch.inputs.dtype == batch.labels.dtype == batch.puzzle_identifiers.dtype == np.int32
        assert (batch.labels[:, 1:] == batch.inputs[:, 1:]).all()
        assert (batch.labels[:, 0] == -100).all()
        assert batch.puzzle_identifiers.tolist() == identifier_of[examples].tolist()


def test_no_group_puzzle_or_example_is_preferred(tmp_path: Path) -> None:
    """Some augmentations or examples would never be trained on."""
    write_split(tmp_path / "train", ARC_LIKE)
    data = PuzzleDataset(tmp_path, "train", global_batch_size=2)
    drawn = Counter[int]()
    firsts = set()
    for iteration in range(300):
        batches = rows(data.train_batches(iteration, epochs=2))
        firsts.add(tuple(batches[0]))
        drawn.update(example for batch in batches for example in batch)
    assert set(drawn) == set(range(29))
    assert len(firsts) > 25
    # Of puzzle 0 (3 examples) a batch of 2 takes any pair.
    pairs = Counter(tuple(sorted(pair)) for pair in firsts if max(pair) < 3)
    assert set(pairs) == {(0, 1), (0, 2), (1, 2)}
    # Puzzles of one group are equally likely: the two of group 4 have 6 and 1 examples, identifiers 8 and 9.
    picks = Counter[int]()
    for iteration in range(600):
        data = PuzzleDataset(tmp_path, "train", global_batch_size=1, seed=iteration)
        picks.update(int(b.puzzle_identifiers[0]) for b in data.train_batches(0, epochs=1))
    assert abs(picks[8] / (picks[8] + picks[9]) - 0.5) < 0.08


def test_examples_of_a_puzzle_stand_in_random_order(tmp_path: Path) -> None:
    """The published code shuffles them: with a fixed order, what comes first in a task would always come first."""
    write_split(tmp_path / "train", [[3], [1, 1], [4]])
    orders: dict[int, Counter[tuple[int, ...]]] = {0: Counter(), 5: Counter()}
    firsts_of_four = Counter[tuple[int, ...]]()
    data, small = (PuzzleDataset(tmp_path, "train", global_batch_size=size) for size in (8, 2))
    for iteration in range(1200):
        (batch,) = rows(data.train_batches(iteration, epochs=1))
        for first, count in ((0, 3), (5, 4)):
            orders[first][tuple(example for example in batch if first <= example < first + count)] += 1
        pairs = rows(small.train_batches(iteration, epochs=1))
        firsts_of_four.update(tuple(pair) for pair in pairs if min(pair) >= 5)
    assert len(orders[0]) == 6
    assert all(abs(times - 200) < 60 for times in orders[0].values())  # 4.6 standard deviations
    assert len(orders[5]) == 24
    assert all(abs(times - 50) < 33 for times in orders[5].values())
    assert len(firsts_of_four) == 12, "which examples a full batch leaves out, and their order, are random too"
    average = sum(firsts_of_four.values()) / 12
    assert all(abs(times - average) < 5 * average**0.5 for times in firsts_of_four.values())


@settings(max_examples=40, deadline=None)
@given(
    examples=st.integers(1, 5),
    groups=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    size=st.integers(1, 12),
    epochs=st.integers(1, 6),
)
def test_the_number_of_batches_is_known_where_all_puzzles_are_of_one_size(
    examples: int, groups: list[int], size: int, epochs: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A run's first line would announce steps that its data doesn't have."""
    path = tmp_path_factory.mktemp("data")
    write_split(path / "train", [[examples] * puzzles for puzzles in groups], set_names=("one", "two"))
    data = PuzzleDataset(path, "train", global_batch_size=size)
    expected = data.num_batches(epochs)
    assert expected == (len(list(data.train_batches(0, epochs=epochs))) if expected else 0)
    write_split(path / "other" / "train", [[1, 2], [1]])
    assert PuzzleDataset(path / "other", "train", global_batch_size=1).num_batches(epochs) is None


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(0, 5), st.integers(0, 2**40))
def test_a_planned_batch_is_one_shuffle_read_puzzle_by_puzzle(counts: list[int], excess: int, seed: int) -> None:
    """Taken literally, for each puzzle in turn; a mistake in the offsets would mix the examples of two tasks."""
    excess = min(excess, counts[-1] - 1)
    firsts = [100 * number for number in range(len(counts))]
    found = _PlannedBatch(np.array(firsts), np.array(counts), excess, (seed, 0, 0, 0, 1)).examples()
    drawn = [(puzzle, place) for puzzle, count in enumerate(counts) for place in range(count)]
    shuffled = [drawn[i] for i in np.random.default_rng((seed, 0, 0, 0, 1)).permutation(len(drawn))]
    expected = [firsts[puzzle] + place for turn in range(len(counts)) for puzzle, place in shuffled if puzzle == turn]
    if max(counts) == 1:  # nothing to shuffle, and nothing is drawn
        expected = firsts
    assert found.tolist() == expected[: len(expected) - excess]


def test_the_order_of_puzzles_with_one_example_is_fixed(tmp_path: Path) -> None:
    """Runs on Sudoku or mazes that are resumed, or repeated with an earlier seed, would see other batches."""
    write_split(tmp_path / "train", [[1, 1], [1], [1, 1, 1], [1], [1]])
    data = PuzzleDataset(tmp_path, "train", global_batch_size=3, seed=4)
    assert rows(data.train_batches(1, epochs=3)) == [[2, 5, 7], [6, 0, 7], [2, 6, 5], [0, 2, 6], [7, 0, 4]]


@pytest.mark.parametrize("num_ranks", [2, 3, 6])
def test_ranks_share_the_batches_of_one(num_ranks: int, tmp_path: Path) -> None:
    """A run on several devices would train on, or evaluate, other examples than a run on one."""
    for split in ("train", "test"):
        write_split(tmp_path / split, ARC_LIKE, set_names=("a", "b"))

    def batches(split: str, rank: int, ranks: int) -> list[Batch]:
        data = PuzzleDataset(tmp_path, split, global_batch_size=12, seed=5, rank=rank, num_ranks=ranks)
        return list(data.train_batches(1, epochs=7) if split == "train" else data.eval_batches())

    for split in ("train", "test"):
        whole = batches(split, 0, 1)
        slices = [batches(split, rank, num_ranks) for rank in range(num_ranks)]
        assert {len(part) for part in slices} == {len(whole)}, "ranks would wait for each other for ever"
        joined = [
            Batch(
                parts[0].set_name,
                {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays},
                sum(part.num_examples for part in parts),
            )
            for parts in zip(*slices, strict=True)
        ]
        assert same(joined, whole)
        assert all(len(part.inputs) == 12 // num_ranks for parts in slices for part in parts)


def test_starting_at_a_batch_continues_the_same_iteration(tmp_path: Path) -> None:
    """A resumed run would see other data than an uninterrupted one."""
    write_split(tmp_path / "train", ARC_LIKE, set_names=("a", "b"))
    data = PuzzleDataset(tmp_path, "train", global_batch_size=5, seed=2)
    for iteration in (0, 3):
        whole = list(data.train_batches(iteration, epochs=4))
        for start in range(len(whole) + 1):
            again = PuzzleDataset(tmp_path, "train", global_batch_size=5, seed=2)
            assert same(list(again.train_batches(iteration, epochs=4, start_batch=start)), whole[start:])
    assert not same(list(data.train_batches(0, epochs=4)), list(data.train_batches(1, epochs=4)))
    other = PuzzleDataset(tmp_path, "train", global_batch_size=5, seed=3)
    assert not same(list(data.train_batches(0, epochs=4)), list(other.train_batches(0, epochs=4)))


def test_skipped_batches_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming late in an iteration would read the data set again and again first."""
    write_split(tmp_path / "train", ARC_LIKE)
    data = PuzzleDataset(tmp_path, "train", global_batch_size=5)
    read = PuzzleDataset._read
    reads: list[int] = []

    def counting(self: PuzzleDataset, data: Any, examples: np.ndarray, rows: int) -> Batch:
        reads.append(len(examples))
        return read(self, data, examples, rows)

    monkeypatch.setattr(PuzzleDataset, "_read", counting)
    next(data.train_batches(0, epochs=400, start_batch=900))
    assert reads == [5]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.uint16, ">i4"])
def test_tokens_of_any_integer_type_are_read(dtype: str, tmp_path: Path) -> None:
    """Data sets built by other programs (int64 in particular) would be refused or misread."""
    write_split(tmp_path / "test", ARC_LIKE, dtype=dtype, ignore_label_id=None)
    (batch,) = PuzzleDataset(tmp_path, "test", global_batch_size=29).eval_batches()
    assert batch.inputs.dtype == np.int32
    assert example_numbers(batch.inputs) == list(range(29))
    assert (batch.labels[:, 0] == 0).all(), "without ignore_label_id every label counts"


def test_ignored_label_outside_the_vocabulary(tmp_path: Path) -> None:
    """Files that mark ignored labels with -100 themselves would be refused."""
    write_split(tmp_path / "test", ARC_LIKE, dtype=np.int64, ignore_label_id=-100)
    (batch,) = PuzzleDataset(tmp_path, "test", global_batch_size=29).eval_batches()
    assert (batch.labels[:, 0] == -100).all()
    assert (batch.labels[:, 1:] == batch.inputs[:, 1:]).all()


def test_evaluation_reads_all_in_order_and_pads(tmp_path: Path) -> None:
    """Accuracy would count padding, or leave examples out; predictions would not line up with the data."""
    write_split(tmp_path / "test", ARC_LIKE, set_names=("a", "b"))
    data = PuzzleDataset(tmp_path, "test", global_batch_size=8)
    assert data.num_examples == 58
    batches = list(data.eval_batches())
    assert [(b.set_name, b.num_examples) for b in batches] == [(s, n) for s in "ab" for n in (8, 8, 8, 5)]
    for name in "ab":
        mine = rows(batch for batch in batches if batch.set_name == name)
        assert [example for batch in mine for example in batch] == list(range(29))
    last = batches[3]
    assert last.inputs.shape == (8, 4)
    assert (last.inputs[5:] == 7).all()
    assert (last.labels[5:] == -100).all()
    sizes = [size for group in ARC_LIKE for size in group]
    assert last.puzzle_identifiers.tolist() == [*np.repeat(np.arange(len(sizes)) + 1, sizes)[24:29], 0, 0, 0]


@pytest.mark.parametrize("limit", [0, 1, 8, 13, 29, 30, 1000])
def test_max_examples_takes_the_first(limit: int, tmp_path: Path) -> None:
    """A quick evaluation would measure other examples at each call, or compute and measure more than asked for."""
    write_split(tmp_path / "test", ARC_LIKE, set_names=("a", "b"))
    for ranks in (1, 2):
        parts = [
            list(
                PuzzleDataset(tmp_path, "test", global_batch_size=8, rank=rank, num_ranks=ranks).eval_batches(
                    max_examples=limit
                )
            )
            for rank in range(ranks)
        ]
        seen = [e for step in zip(*parts, strict=True) for batch in step for e in rows([batch])[0]]
        assert seen == [*range(29), *range(29)][:limit]
        shapes = {batch.inputs.shape for part in parts for batch in part}
        assert shapes == ({(min(8, limit + limit % ranks) // ranks, 4)} if limit else set())


# ---------------------------------------------------------------------------------------------------- speed, memory


def sudoku_like(folder: Path, groups: int, copies: int, seq_len: int = 81) -> Path:
    n = groups * copies
    folder.mkdir(parents=True)
    tokens = np.random.default_rng(0).integers(1, 11, (n, seq_len), dtype=np.uint8)
    np.save(folder / "all__inputs.npy", tokens)
    np.save(folder / "all__labels.npy", tokens)
    np.save(folder / "all__puzzle_identifiers.npy", np.zeros(n, np.int32))
    np.save(folder / "all__puzzle_indices.npy", np.arange(n + 1, dtype=np.int32))
    np.save(folder / "all__group_indices.npy", np.arange(0, n + 1, copies, dtype=np.int32))
    values: dict[str, Any] = {"pad_id": 0, "ignore_label_id": 0, "blank_identifier_id": 0, "vocab_size": 11}
    values |= {"seq_len": seq_len, "num_puzzle_identifiers": 1, "total_groups": groups, "mean_puzzle_examples": 1.0}
    (folder / "dataset.json").write_text(json.dumps({**values, "sets": ["all"]}))
    return folder


def test_batches_are_read_far_faster_than_row_by_row(tmp_path: Path) -> None:
    """The accelerator would wait for data."""
    sudoku_like(tmp_path / "train", groups=1000, copies=50)
    data = PuzzleDataset(tmp_path, "train", global_batch_size=384)
    files = [np.load(tmp_path / "train" / f"all__{kind}.npy", mmap_mode="r") for kind in ("inputs", "labels")]
    order = np.random.default_rng(0).permutation(len(files[0]))[:10_000]

    def batches(iteration: int) -> int:
        return sum(batch.num_examples for batch in data.train_batches(iteration, epochs=50))

    def rows(iteration: int) -> int:
        return len([file[i].astype(np.int32) for i in order for file in files]) // 2

    def rate(read: Callable[[int], int]) -> float:
        """Examples in a second of this process, the best of five tries."""
        best = 0.0
        for iteration in range(5):
            start = time.process_time()
            best = max(best, read(iteration) / (time.process_time() - start))
        return best

    assert rate(batches) > 3 * rate(rows)  # 9 times where this was written


def test_memory_does_not_grow_with_the_epochs(tmp_path: Path) -> None:
    """An ARC iteration (10,000 epochs of 960 groups) would hold hundreds of megabytes of indices."""
    sudoku_like(tmp_path / "train", groups=960, copies=2, seq_len=1)
    data = PuzzleDataset(tmp_path, "train", global_batch_size=768)
    batches = data.train_batches(0, epochs=10_000, start_batch=1000)
    tracemalloc.start()
    try:
        next(batches)
        for _ in range(20):
            next(batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6, f"{peak / 1e6:.1f} MB"


# ---------------------------------------------------------------------------------------------------- refusals


def edit_json(folder: Path, **changes: object) -> None:
    file = folder / "dataset.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "REMOVE"}))


def change(kind: str, at: int | tuple[int, int], value: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        array = np.load(folder / f"all__{kind}.npy")
        array[at] = value
        np.save(folder / f"all__{kind}.npy", array)

    return apply


def save(kind: str, array: Any) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / f"all__{kind}.npy", array)


def truncate(file: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:keep])  # type: ignore[return-value]


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def pipe(file: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return apply


def meta(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder, **changes)


VOCABULARY = ["", *map(str, range(1, 100))]
# 10 puzzles in 6 groups, 29 examples of 4 tokens below 100.
BROKEN: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no metadata": (remove("dataset.json"), ["dataset.json is missing", "half-built"]),
    "no inputs": (remove("all__inputs.npy"), ["all__inputs.npy is missing"]),
    "no group indices": (remove("all__group_indices.npy"), ["all__group_indices.npy is missing"]),
    "truncated tokens": (truncate("all__labels.npy", 200), ["all__labels.npy is truncated"]),
    "truncated header": (truncate("all__inputs.npy", 20), ["all__inputs.npy is truncated"]),
    "empty file": (truncate("all__inputs.npy", 0), ["all__inputs.npy is truncated"]),
    "truncated index": (truncate("all__puzzle_indices.npy", 140), ["all__puzzle_indices.npy is truncated"]),
    "pickled objects": (save("inputs", np.array([{}, []], object)), ["all__inputs.npy", "not a .npy file"]),
    "floats": (save("inputs", np.zeros((29, 4))), ["all__inputs.npy holds float64", "integers"]),
    "unreadable metadata": (truncate("dataset.json", 30), ["dataset.json", "JSON"]),
    "no vocab_size": (meta(vocab_size="REMOVE"), ["dataset.json", "vocab_size", "required"]),
    "text for seq_len": (meta(seq_len="many"), ["dataset.json", "seq_len", "'many'"]),
    "seq_len 0": (meta(seq_len=0), ["seq_len is 0", "1 to 1048576"]),
    "2**40 tokens": (meta(vocab_size=2**40), ["vocab_size is 1099511627776", "1 to 1048576"]),
    "2**70 tokens": (meta(vocab_size=2**70), ["vocab_size is 1180591620717411303424"]),
    "2**40 identifiers": (meta(num_puzzle_identifiers=2**40), ["num_puzzle_identifiers is 1099511627776"]),
    "2**40 cells": (meta(seq_len=2**40), ["seq_len is 1099511627776"]),
    "puzzles without examples": (meta(mean_puzzle_examples=0), ["mean_puzzle_examples is 0.0", "above 0"]),
    "fewer than none": (meta(mean_puzzle_examples=-1), ["mean_puzzle_examples is -1.0"]),
    "no number": (meta(mean_puzzle_examples=float("nan")), ["mean_puzzle_examples is nan"]),
    "more than there are": (meta(mean_puzzle_examples=1e308), ["mean_puzzle_examples is 1e+308", "29 examples"]),
    "a long text for a number": (meta(seq_len="x" * 9000), ["seq_len", "xxx…"]),
    "a long name of a field": (meta(fields={"\x1b[2J" * 900: 1}), ["fields.", "x1b[2J"]),
    "a pipe for tokens": (pipe("all__inputs.npy"), ["all__inputs.npy", "no regular file"]),
    "pad beyond vocab": (meta(pad_id=100), ["pad_id is 100", "0 to 99"]),
    "blank beyond ids": (meta(blank_identifier_id=11), ["blank_identifier_id is 11", "0 to 10"]),
    "box of another board": (meta(box=[2, 2]), ["box is [2, 2]", "4 cells"]),
    "box of nothing": (meta(box=[0, 0]), ["box is [0, 0]"]),
    "box of one number": (meta(box=[2]), ["dataset.json", "box"]),
    "shape of another board": (meta(shape=[2, 3]), ["shape is [2, 3]", "seq_len = 4"]),
    "shape of nothing": (meta(shape=[-2, -2]), ["shape is [-2, -2]"]),
    "shape of one number": (meta(shape=[4]), ["dataset.json", "shape"]),
    "other vocabulary": (meta(vocabulary=["", "a"]), ["vocabulary has 2 symbols", "expected 100"]),
    "vocabulary of numbers": (meta(vocabulary=[0] * 100), ["dataset.json", "vocabulary.0"]),
    "vocabulary without padding": (meta(vocabulary=[*VOCABULARY[1:], "a"]), ["vocabulary begins with '1'", "empty"]),
    "symbol twice": (meta(vocabulary=[*VOCABULARY[:-1], "1"]), ["vocabulary has '1' 2 times", "distinct"]),
    "a long symbol": (meta(vocabulary=[*VOCABULARY[:-1], "x" * 9000]), ["vocabulary has 'xxx", "1 to 4 printable"]),
    "an escape as symbol": (meta(vocabulary=[*VOCABULARY[:-1], "\x1b[2J"]), ["vocabulary has '\\x1b[2J'"]),
    "no symbol": (meta(vocabulary=[*VOCABULARY[:-1], ""]), ["vocabulary has ''"]),
    "no sets": (meta(sets=[]), ["sets is []"]),
    "set twice": (meta(sets=["all", "all"]), ["sets is", "distinct"]),
    "set outside the folder": (meta(sets=["../test/all"]), ["../test/all", "distinct names"]),
    "absolute set": (meta(sets=["/etc/all"]), ["/etc/all"]),
    "other group count": (meta(total_groups=7), ["total_groups is 7", "6 groups"]),
    "other seq_len": (meta(seq_len=5), ["all__inputs.npy", "(29, 4)", "(examples, 5)"]),
    "inputs of one axis": (save("inputs", np.zeros(29, np.uint8)), ["all__inputs.npy", "(29,)"]),
    "no examples": (save("inputs", np.zeros((0, 4), np.uint8)), ["all__inputs.npy"]),
    "fewer labels": (save("labels", np.ones((28, 4), np.uint8)), ["all__labels.npy", "(28, 4)", "(29, 4)"]),
    "offsets start late": (change("puzzle_indices", 0, 1), ["all__puzzle_indices.npy", "start at 1", "expected 0"]),
    "offsets fall": (change("puzzle_indices", 3, 2), ["all__puzzle_indices.npy", "from 4 to 2 at position 2"]),
    "offsets stand still": (change("group_indices", 2, 2), ["all__group_indices.npy", "from 2 to 2 at position 1"]),
    "offsets end early": (change("puzzle_indices", 10, 28), ["all__puzzle_indices.npy", "end at 28", "29", "examples"]),
    "groups end late": (change("group_indices", 6, 12), ["all__group_indices.npy", "end at 12", "10", "puzzles"]),
    "one offset": (save("group_indices", np.zeros(1, np.int32)), ["all__group_indices.npy", "(1,)"]),
    "identifier too large": (change("puzzle_identifiers", 4, 11), ["identifiers.npy", "identifier 11", "0 to 10"]),
    "identifier negative": (change("puzzle_identifiers", 4, -1), ["identifiers.npy", "identifier -1", "0 to 10"]),
    "identifier count": (save("puzzle_identifiers", np.ones(9, np.int32)), ["end at 10", "expected 9"]),
    "input token": (change("inputs", (28, 3), 100), ["all__inputs.npy", "token 100", "0 to 99", "vocab_size"]),
    "label token": (change("labels", (0, 0), 255), ["all__labels.npy", "token 255", "0 to 99"]),
    "negative token": (save("inputs", np.full((29, 4), -1)), ["all__inputs.npy", "token -1", "0 to 99"]),
}


def test_symbols_and_shape_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Puzzles of one's own would be shown as numbers, in rows that they do not have."""
    write_split(tmp_path / "train", ARC_LIKE, vocabulary=VOCABULARY, shape=[1, 4])
    metadata = PuzzleDataset(tmp_path, "train", global_batch_size=4).metadata
    assert (metadata.vocabulary, metadata.shape) == (VOCABULARY, (1, 4))


def test_the_kind_may_be_known_unknown_or_absent(tmp_path: Path) -> None:
    """A data set built before, or by somebody else's builder, could no longer be trained on."""
    cases: list[tuple[dict[str, Any], str | None, tuple[int, int] | None]] = [
        ({}, None, None),
        ({"kind": "knights"}, "knights", None),
        ({"kind": "sudoku", "box": [1, 2]}, "sudoku", (1, 2)),
    ]
    for number, (recorded, kind, box) in enumerate(cases):
        write_split(tmp_path / str(number) / "train", ARC_LIKE, **recorded)
        metadata = PuzzleDataset(tmp_path / str(number), "train", global_batch_size=4).metadata
        assert (metadata.kind, metadata.box) == (kind, box)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Training would crash hours later, read wrong rows, or learn from garbage."""
    path = tmp_path / "of mine"
    command = "python dataset/build_sudoku_dataset.py --subsample-size 1000 --num-aug 1000"
    folder = write_split(path / "train", [[1, 3], [4], [1, 5, 2], [2], [6, 2], [3]], command=command)
    PuzzleDataset(path, "train", global_batch_size=4)
    damage, parts = BROKEN[name]
    damage(folder)
    with pytest.raises(UserError) as caught:
        PuzzleDataset(path, "train", global_batch_size=4)
    readable = name not in ("no metadata", "unreadable metadata")
    remedy = f"; build it with {command} --output-dir '{path}' --overwrite" if readable else GENERAL_REMEDY
    for part in [str(folder), *parts, remedy]:
        assert part in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "command",
    [
        "python dataset/build_sudoku_dataset.py; rm -rf /",
        "python dataset/build_sudoku_dataset.py --source-repo `reboot`",
        "python dataset/build_sudoku_dataset.py '\x1b[2J'",
        "python dataset/build_sudoku_dataset.py 'half",
        "python dataset/../mine.py",
        "rm dataset/build_sudoku_dataset.py",
        "",
    ],
)
def test_a_command_that_is_not_a_builders_is_not_shown(command: str, tmp_path: Path) -> None:
    """A data set from somebody else would have a user paste another command into a shell."""
    write_split(tmp_path / "train", [[1]], command=command, total_groups=2)
    with pytest.raises(UserError) as caught:
        PuzzleDataset(tmp_path, "train", global_batch_size=1)
    assert str(caught.value).endswith(GENERAL_REMEDY)


def test_pickles_are_never_run(tmp_path: Path) -> None:
    """Opening somebody's data set could run their code."""
    folder = write_split(tmp_path / "train", ARC_LIKE)

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (folder / "all__inputs.npy").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(UserError):
        PuzzleDataset(tmp_path, "train", global_batch_size=4)
    assert not (tmp_path / "ran").exists()


def test_a_missing_data_set_or_split_tells_how_to_build_it(tmp_path: Path) -> None:
    """Who starts training before building would not know what to do."""
    path = tmp_path / "sudoku"
    with pytest.raises(UserError) as caught:
        PuzzleDataset(path, "train", global_batch_size=4)
    assert str(caught.value) == f"no data set at {path}: there is no such folder{GENERAL_REMEDY}"
    command = "python dataset/build_sudoku_dataset.py --source-repo 'my puzzles'"
    write_split(path / "train", [[1]], command=command)
    with pytest.raises(UserError) as caught:
        PuzzleDataset(path, "test", global_batch_size=4)
    assert "no split 'test'" in str(caught.value)
    assert str(caught.value).endswith(f"; build it with {command} --output-dir {path} --overwrite")


def test_a_training_set_below_one_batch_is_an_error(tmp_path: Path) -> None:
    """Training would do nothing and say nothing."""
    write_split(tmp_path / "train", [[1]] * 10)
    data = PuzzleDataset(tmp_path, "train", global_batch_size=32)
    for start in (0, 1):
        with pytest.raises(UserError, match="3 epochs of 10 groups don't fill one batch of 32 examples"):
            data.train_batches(0, epochs=3, start_batch=start)
    assert len(list(data.train_batches(0, epochs=4))) == 1
    assert [batch.num_examples for batch in data.eval_batches()] == [10]


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    """Ranks would disagree about shapes, or crash inside numpy."""
    write_split(tmp_path / "train", ARC_LIKE)
    for options, message in (
        ({"global_batch_size": 10, "num_ranks": 4}, "10 is not divisible by the number of ranks 4: use 12"),
        ({"global_batch_size": 0}, "global_batch_size is 0"),
        ({"global_batch_size": 3, "num_ranks": 2, "size_key": "eval_batch_size"}, "eval_batch_size 3 is not divisible"),
        ({"global_batch_size": 4, "rank": 2, "num_ranks": 2}, "rank is 2 of 2"),
        ({"global_batch_size": 4, "seed": -1}, "seed is -1"),
    ):
        with pytest.raises(UserError, match=message):
            PuzzleDataset(tmp_path, "train", **options)


def test_rows_read_past_the_map_are_the_maps(tmp_path: Path) -> None:
    """The fingerprint of a data set, and with it the right to resume, is made of them."""
    for dtype in (np.uint8, np.int64):
        np.save(tmp_path / "tokens.npy", np.arange(40, dtype=dtype).reshape(10, 4))
        mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
        rows = np.array([9, 0, 3, 3])
        np.testing.assert_array_equal(read_rows(mapped, rows), mapped[rows])
