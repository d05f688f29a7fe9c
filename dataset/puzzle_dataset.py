"""From a data set folder to batches: the training and evaluation order.

numpy only. Token files are memory-mapped; only the small index arrays are held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import IGNORE_LABEL_ID
from common.errors import UserError
from dataset.dataset_files import ExampleSet, how_to_build, open_set, read_metadata, read_rows
from dataset.metadata import PuzzleDatasetMetadata

FINGERPRINT_ROWS = 1024
# The metadata that a trained model depends on; keys added to the format later are not among them
_IDENTITY = {
    "pad_id",
    "ignore_label_id",
    "blank_identifier_id",
    "vocab_size",
    "seq_len",
    "num_puzzle_identifiers",
    "total_groups",
    "mean_puzzle_examples",
    "sets",
}


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch, b rows: global_batch_size / num_ranks, in small evaluations fewer.

    Attributes:
        set_name: the set that the examples are from.
        arrays: `inputs` and `labels`, int32 `[b, S]`, labels without loss being -100; `puzzle_identifiers`, int32
            `[b]`; and the data set's fields, int32 or float32 `[b, ...]`.
        num_examples: the first so many rows are real; the others (at the end of an evaluation only) are padding rows.
    """

    set_name: str
    arrays: dict[str, np.ndarray]
    num_examples: int

    @property
    def inputs(self) -> np.ndarray:
        return self.arrays["inputs"]

    @property
    def labels(self) -> np.ndarray:
        return self.arrays["labels"]

    @property
    def puzzle_identifiers(self) -> np.ndarray:
        return self.arrays["puzzle_identifiers"]


def padding_arrays(metadata: PuzzleDatasetMetadata, rows: int) -> dict[str, np.ndarray]:
    """Return the arrays of a batch of padding rows: pad_id, -100, blank identifier, zeros in fields.

    Args:
        metadata: of the split.
        rows: b, the number of rows.

    Returns:
        The arrays of a `Batch`, in the shapes and dtypes that all batches of the split have.
    """
    arrays = {
        "inputs": np.full((rows, metadata.seq_len), metadata.pad_id, np.int32),
        "labels": np.full((rows, metadata.seq_len), IGNORE_LABEL_ID, np.int32),
        "puzzle_identifiers": np.full(rows, metadata.blank_identifier_id, np.int32),
    }
    for name, field in getattr(metadata, "fields", {}).items():  # bare sizes, without a data set, have none
        arrays[name] = np.zeros((rows, *field.shape), field.dtype)
    return arrays


class PuzzleDataset:
    """One split of a data set.

    All ranks go through the same global batches, fixed by (seed, iteration), and each reads only its slice of them.
    Every file is checked at construction, token values included (a sequential read of the token files).

    Args:
        path: the data set's folder.
        split: `train` or `test`.
        global_batch_size: rows of a batch over all ranks.
        seed: decides the order of training.
        rank: this process, 0 to num_ranks - 1.
        num_ranks: number of processes, of which `global_batch_size` is a multiple.
        size_key: the key of the configuration that gave `global_batch_size`, for messages.

    Raises:
        UserError: for a missing or damaged file, or an argument out of range.

    Attributes:
        metadata: the content of `dataset.json`.
        num_examples: examples of the split.
        batch_size: rows of a training batch on this rank.
    """

    metadata: PuzzleDatasetMetadata
    num_examples: int

    def __init__(
        self,
        path: str | Path,
        split: str,
        *,
        global_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        size_key: str = "global_batch_size",
    ) -> None:
        if global_batch_size < 1:
            raise UserError(f"{size_key} is {global_batch_size}: expected at least 1")
        if num_ranks < 1 or not 0 <= rank < num_ranks:
            raise UserError(f"rank is {rank} of {num_ranks}: expected 0 <= rank < number of ranks")
        if global_batch_size % num_ranks:
            raise UserError(
                f"{size_key} {global_batch_size} is not divisible by the number of ranks {num_ranks}: "
                f"use {-(-global_batch_size // num_ranks) * num_ranks}"
            )
        if seed < 0:
            raise UserError(f"seed is {seed}: expected 0 or more")
        self.path, self.split = Path(path), split
        self.global_batch_size, self.seed, self.rank, self.num_ranks = global_batch_size, seed, rank, num_ranks
        self.batch_size = global_batch_size // num_ranks
        self.metadata = read_metadata(self.path, split)
        self._sets = [open_set(self.path / split, name, self.metadata) for name in self.metadata.sets]
        groups = sum(len(s.group_indices) - 1 for s in self._sets)
        if groups != self.metadata.total_groups:
            raise UserError(
                f"{self.path / split / 'dataset.json'}: total_groups is {self.metadata.total_groups}, but the group "
                f"indices hold {groups} groups; {how_to_build(self.path)}"
            )
        self.num_examples = sum(len(s.inputs) for s in self._sets)
        if self.metadata.mean_puzzle_examples > self.num_examples:
            raise UserError(
                f"{self.path / split / 'dataset.json'}: mean_puzzle_examples is {self.metadata.mean_puzzle_examples}, "
                f"but the split has {self.num_examples} examples; {how_to_build(self.path)}"
            )

    def fingerprint(self) -> str:
        """Compute a checksum of the split's metadata, index arrays and a sample of its examples.

        It depends neither on the data set's path nor on the command in `dataset.json`. Splits with the same checksum
        have the same batches, unless single puzzles were edited.
        """
        digest = hashlib.sha256(self.metadata.model_dump_json(include=_IDENTITY).encode())
        for data in self._sets:
            rows = np.linspace(0, len(data.inputs) - 1, FINGERPRINT_ROWS).astype(np.int64)
            indices = (data.group_indices, data.puzzle_indices, data.puzzle_identifiers)
            for array in (*indices, read_rows(data.inputs, rows), read_rows(data.labels, rows)):
                digest.update(np.ascontiguousarray(array, np.int64).data)  # whatever integer type the file holds
            for name, field in sorted(self.metadata.fields.items()):  # in a data set without fields, nothing is added
                digest.update(f"{name} {field.model_dump_json()}".encode())
                digest.update(np.ascontiguousarray(read_rows(data.fields[name], rows), field.dtype).data)
        return digest.hexdigest()

    def train_batches(self, iteration: int, *, epochs: int, start_batch: int = 0) -> Iterator[Batch]:
        """Iterate over the training batches of one iteration, sets in turn.

        Per set: `epochs` random permutations of the groups, one after the other; from each group one random puzzle,
        and from it, in random order, as many examples as it has and the batch still takes. An incomplete last batch
        is dropped.

        Args:
            iteration: decides, with the seed, all random choices.
            epochs: of an iteration.
            start_batch: the first batch to yield. Those before it are not read, and the others are the same.

        Raises:
            UserError: at the call, if an iteration has no batch.
        """
        if next(self._train_plan(iteration, epochs), None) is None:
            raise UserError(
                f"{self.path / self.split} is too small to train on: {epochs} epochs of {self.metadata.total_groups} "
                f"groups don't fill one batch of {self.global_batch_size} examples; lower global_batch_size or raise "
                "eval_interval, the epochs of an iteration"
            )
        return self._read_plan(iteration, epochs, start_batch)

    def num_batches(self, epochs: int) -> int | None:
        """Count the training batches of an iteration.

        Args:
            epochs: of the iteration.

        Returns:
            The number; None if it depends on which puzzles are drawn, since they have different numbers of examples.
        """
        total = 0
        for data in self._sets:
            examples = np.diff(data.puzzle_indices)
            if examples.min() != examples.max():
                return None
            puzzles_of_batch = -(-self.global_batch_size // int(examples[0]))
            total += epochs * (len(data.group_indices) - 1) // puzzles_of_batch
        return total

    def _read_plan(self, iteration: int, epochs: int, start_batch: int) -> Iterator[Batch]:
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for number, (data, batch) in enumerate(self._train_plan(iteration, epochs)):
            if number >= start_batch:
                yield self._read(data, batch.examples()[mine], self.batch_size)

    def _train_plan(self, iteration: int, epochs: int) -> Iterator[tuple[ExampleSet, _PlannedBatch]]:
        """Plan which examples each global batch has. Holds about an epoch or a batch of indices, never an iteration."""
        size = self.global_batch_size
        for set_number, data in enumerate(self._sets):
            first: np.ndarray = np.empty(0, np.int64)  # of the puzzles drawn and not yet used: their first example,
            count: np.ndarray = np.empty(0, np.int64)  # and their number of examples
            batch_number = 0
            for epoch in range(epochs):
                rng = np.random.default_rng([self.seed, iteration, set_number, epoch])
                order = rng.permutation(len(data.group_indices) - 1)
                puzzles = rng.integers(data.group_indices[order], data.group_indices[order + 1])
                first = np.concatenate((first, data.puzzle_indices[puzzles]))
                count = np.concatenate((count, data.puzzle_indices[puzzles + 1] - data.puzzle_indices[puzzles]))
                ends = np.cumsum(count)
                begin, taken = 0, 0
                while len(ends) and ends[-1] - taken >= size:
                    end = int(np.searchsorted(ends, taken + size)) + 1  # the puzzle that fills the batch is its last
                    excess = int(ends[end - 1]) - taken - size
                    key = (self.seed, iteration, set_number, batch_number, 1)  # 1: never an epoch's key
                    yield data, _PlannedBatch(first[begin:end], count[begin:end], excess, key)
                    begin, taken, batch_number = end, int(ends[end - 1]), batch_number + 1
                first, count = first[begin:], count[begin:]

    def eval_batches(self, *, max_examples: int | None = None, max_rows: int | None = None) -> Iterator[Batch]:
        """Iterate over every example once, in order, set after set.

        All batches have the same shape, of no more rows than the largest set has examples to evaluate, rounded up to
        the number of ranks. The last batch of a set is padded. All ranks get equally many batches, so a rank's last one
        may be all padding.

        Args:
            max_examples: only the split's first so many examples; None means all.
            max_rows: of a batch of this rank at most; None: `batch_size`.
        """
        left = self.num_examples if max_examples is None else min(max_examples, self.num_examples)
        stops = []
        for data in self._sets:
            stops.append(min(len(data.inputs), left))
            left -= stops[-1]
        rows = min(self.batch_size, max_rows or self.batch_size, -(-max(stops) // self.num_ranks))
        for data, stop in zip(self._sets, stops, strict=True):
            for start in range(0, stop, rows * self.num_ranks or 1):  # no rows: nothing to evaluate
                begin = start + self.rank * rows
                yield self._read(data, np.arange(begin, max(begin, min(begin + rows, stop))), rows)

    def _read(self, data: ExampleSet, examples: np.ndarray, rows: int) -> Batch:
        """Read the given examples as a batch of so many rows, the last ones being padding rows."""
        arrays = padding_arrays(self.metadata, rows)
        puzzles = np.searchsorted(data.puzzle_indices, examples, side="right") - 1
        real = len(examples)
        arrays["inputs"][:real] = data.inputs[examples]
        labels = arrays["labels"]
        labels[:real] = data.labels[examples]
        if self.metadata.ignore_label_id is not None:
            labels[labels == self.metadata.ignore_label_id] = IGNORE_LABEL_ID
        arrays["puzzle_identifiers"][:real] = data.puzzle_identifiers[puzzles]
        for name, entries in data.fields.items():
            arrays[name][:real] = entries[examples]
        return Batch(data.name, arrays, real)


@dataclass(frozen=True)
class _PlannedBatch:
    """A global batch before it is read: all examples of its puzzles, except `excess` examples of the last one."""

    first: np.ndarray  # (puzzles,) first example
    count: np.ndarray  # (puzzles,) number of examples
    excess: int
    key: tuple[int, ...]  # seeds the order within the puzzles, and with it which examples are left out

    def examples(self) -> np.ndarray:
        """Return the example indices, int64 `[global_batch_size]`: puzzle after puzzle, each in random order."""
        ends = np.cumsum(self.count)
        total = int(ends[-1])
        if len(self.first) == total:  # one example a puzzle, as in Sudoku
            return self.first
        puzzle = np.repeat(np.arange(len(self.first)), self.count)
        shuffled = np.random.default_rng(self.key).permutation(total)
        order = shuffled[np.argsort(puzzle[shuffled], kind="stable")]  # the puzzles in turn again, each one shuffled
        return (order + (self.first - (ends - self.count))[puzzle])[: total - self.excess]
