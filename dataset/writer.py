"""The writer of data sets, used by all builders.

A data set in the HRM format is a folder with `identifiers.json` and the splits `train/` and `test/`, each holding
`dataset.json` and, per set, token arrays `[examples, seq_len]` with three index arrays that nest examples in puzzles
and puzzles in groups. A puzzle's augmented copies are puzzles of one group: training draws one of them per epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from common.errors import UserError
from common.files import PARTIAL, REPLACED, expand_user, move_into_place, naming, remove
from dataset.metadata import (
    BLANK_IDENTIFIER,
    INDEX_DTYPE,
    SET_NAME,
    SPLITS,
    TOKEN_DTYPE,
    ExampleField,
    PuzzleDatasetMetadata,
    is_field_name,
)
from dataset.npy_stream import NpyStream


class _SplitWriter:
    """The streams, one row per example, and the growing index arrays of one split."""

    def __init__(self, folder: Path, seq_len: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.streams: dict[str, NpyStream] = {}
        for name in ("inputs", "labels"):
            self.open_stream(name, (seq_len,), TOKEN_DTYPE)
        self.puzzle_identifiers: list[np.ndarray] = []
        self.examples_per_puzzle: list[np.ndarray] = []
        self.puzzles_per_group: list[np.ndarray] = []

    def open_stream(self, name: str, row_shape: tuple[int, ...], dtype: str | np.dtype) -> None:
        self.streams[name] = NpyStream(self.folder / f"{SET_NAME}__{name}.npy", row_shape, dtype)

    def finish(self) -> tuple[int, int, int]:
        """Write the index arrays. Returns the number of groups, puzzles and examples."""
        examples = self.streams["inputs"].rows
        if not examples:
            raise UserError(f"no puzzles for the split {self.folder.name!r}: there is nothing to build")
        for stream in self.streams.values():
            stream.finish()
        counts = []
        for name, parts in (("group", self.puzzles_per_group), ("puzzle", self.examples_per_puzzle)):
            sizes = np.concatenate(parts)
            offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
            if offsets[-1] > np.iinfo(INDEX_DTYPE).max:
                raise UserError(f"{offsets[-1]} rows don't fit the format's int32 offsets: build fewer copies")
            np.save(self.folder / f"{SET_NAME}__{name}_indices.npy", offsets.astype(INDEX_DTYPE))
            counts.append(len(sizes))
        identifiers = np.concatenate(self.puzzle_identifiers).astype(INDEX_DTYPE)
        np.save(self.folder / f"{SET_NAME}__puzzle_identifiers.npy", identifiers)
        return counts[0], counts[1], examples

    def close(self) -> None:
        """Close what `finish` has not closed. The data set goes, so what a full disk doesn't take doesn't matter."""
        for stream in self.streams.values():
            with contextlib.suppress(OSError):
                stream.file.close()


class DatasetWriter:
    """Context manager that writes one data set, completely or not at all.

    Everything goes into a hidden folder beside `output_dir`, which takes its place when the block ends without an
    exception. An interrupted build leaves nothing that a loader accepts, and an existing data set as it was.

    Args:
        output_dir: the folder to make; an empty folder there is replaced.
        seq_len: cells of a board.
        vocab_size: number of tokens.
        pad_id: token of padding rows.
        ignore_label_id: label token without loss; None if every label counts.
        kind: what the puzzles are, such as "sudoku".
        box: rows and columns of a Sudoku's box.
        shape: rows and columns of a board.
        vocabulary: the symbol of each token, `vocab_size` texts.
        command: the command line that builds this data set, without `--output-dir`.
        overwrite: whether a data set at `output_dir` is replaced as well.

    Attributes:
        identifiers: the puzzle names, index = identifier; a builder that names its puzzles appends to it.
        test_puzzles: task id to raw task; written to test_puzzles.json unless it is empty.

    Raises:
        UserError: before any work, if something else is at `output_dir`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        seq_len: int,
        vocab_size: int,
        pad_id: int = 0,
        ignore_label_id: int | None = 0,
        kind: str | None = None,
        box: tuple[int, int] | None = None,
        shape: tuple[int, int] | None = None,
        vocabulary: list[str] | None = None,
        command: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.output_dir = expand_user(output_dir).resolve()
        self.seq_len, self.vocab_size, self.pad_id, self.ignore_label_id = seq_len, vocab_size, pad_id, ignore_label_id
        self.kind, self.box, self.shape, self.vocabulary = kind, box, shape, vocabulary
        self.command, self.overwrite = command, overwrite
        self.identifiers = [BLANK_IDENTIFIER]
        self.test_puzzles: dict[str, Any] = {}
        self._fields: dict[str, ExampleField] | None = None  # as the first call of `add` brings them
        _refuse_to_replace(self.output_dir, overwrite)

    def __enter__(self) -> DatasetWriter:
        # Named by the process, so that two builds into one folder don't remove each other's files, as `replacing` would
        parent, prefix = self.output_dir.parent, f".{self.output_dir.name}{PARTIAL}-"
        parent.mkdir(parents=True, exist_ok=True)
        for stale in parent.iterdir():  # of builds that were killed
            if stale.name.startswith(prefix) and not _process_runs(stale.name.removeprefix(prefix)):
                remove(stale)
        self._partial = parent / f"{prefix}{os.getpid()}"
        remove(self._partial)
        with contextlib.ExitStack() as stack:
            stack.enter_context(naming(self.output_dir))
            stack.callback(remove, self._partial)
            self._partial.mkdir()
            self._splits = {}
            for split in SPLITS:
                self._splits[split] = _SplitWriter(self._partial / split, self.seq_len)
                stack.callback(self._splits[split].close)
            self._exits = stack.pop_all()  # at the end of the build
        return self

    def add(
        self,
        split: str,
        inputs: np.ndarray,
        labels: np.ndarray,
        *,
        puzzle_identifiers: np.ndarray,
        examples_per_puzzle: np.ndarray,
        puzzles_per_group: np.ndarray,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Append whole groups: g groups of p puzzles of m examples in all.

        Args:
            split: `train` or `test`.
            inputs: tokens `[m, seq_len]`.
            labels: tokens `[m, seq_len]`.
            puzzle_identifiers: integer `[p]`.
            examples_per_puzzle: integer `[p]`, summing to m.
            puzzles_per_group: integer `[g]`, summing to p.
            fields: further arrays for batches by name, `[m, ...]`: integers, stored as int32, or floats, as float32.
                The same in every call, but for m.

        Raises:
            ValueError: if these disagree, or a field can't be stored.
        """
        puzzles, examples = len(puzzle_identifiers), int(np.sum(examples_per_puzzle))
        if (
            inputs.shape != (examples, self.seq_len)
            or labels.shape != inputs.shape
            or len(examples_per_puzzle) != puzzles
            or int(np.sum(puzzles_per_group)) != puzzles
        ):
            raise ValueError(
                f"inconsistent groups: inputs {inputs.shape}, labels {labels.shape}, {examples} examples in "
                f"{len(examples_per_puzzle)} puzzles, {puzzles} identifiers, {int(np.sum(puzzles_per_group))} in groups"
            )
        fields = fields or {}
        self._check_fields(fields, examples)
        writer = self._splits[split]
        for name, rows in {"inputs": inputs, "labels": labels, **fields}.items():
            writer.streams[name].append(rows)
        writer.puzzle_identifiers.append(np.asarray(puzzle_identifiers))
        writer.examples_per_puzzle.append(np.asarray(examples_per_puzzle))
        writer.puzzles_per_group.append(np.asarray(puzzles_per_group))

    def add_boards(self, split: str, questions: np.ndarray, answers: np.ndarray, *, group_size: int = 1) -> None:
        """Append puzzles of one example each that share the blank identifier.

        Args:
            split: `train` or `test`.
            questions: values uint8 `[m, seq_len]`; a token is value + 1, since token 0 is padding.
            answers: values uint8 `[m, seq_len]`.
            group_size: so many puzzles in a row are a group: one and its augmented copies.
        """
        m = len(questions)
        self.add(
            split,
            questions + np.uint8(1),
            answers + np.uint8(1),
            puzzle_identifiers=np.zeros(m, np.int32),
            examples_per_puzzle=np.ones(m, np.int32),
            puzzles_per_group=np.full(m // group_size, group_size, np.int32),
        )

    def _check_fields(self, fields: Mapping[str, np.ndarray], examples: int) -> None:
        """Fix the format of the fields at the first call, and compare with it afterwards."""
        for name, array in fields.items():
            if len(array) != examples:
                raise ValueError(f"field {name!r} has {len(array)} entries, expected {examples}, one per example")
        found = {name: _field_format(name, array) for name, array in fields.items()}
        if self._fields is None:
            self._fields = found
            for name, field in found.items():
                for writer in self._splits.values():
                    writer.open_stream(name, field.shape, field.dtype)
        elif found != self._fields:
            raise ValueError(f"fields are {found}, expected {self._fields} as in the first call")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._exits.__exit__(kind, error, traceback)
            return
        with self._exits:
            self._finish()

    def _finish(self) -> None:
        (self._partial / "identifiers.json").write_text(json.dumps(self.identifiers), encoding="utf-8")
        if self.test_puzzles:
            (self._partial / "test_puzzles.json").write_text(json.dumps(self.test_puzzles), encoding="utf-8")
        metadata = {}
        for split, writer in self._splits.items():
            groups, puzzles, examples = writer.finish()
            metadata[split] = PuzzleDatasetMetadata(
                pad_id=self.pad_id,
                ignore_label_id=self.ignore_label_id,
                blank_identifier_id=0,
                vocab_size=self.vocab_size,
                seq_len=self.seq_len,
                num_puzzle_identifiers=len(self.identifiers),
                total_groups=groups,
                mean_puzzle_examples=examples / puzzles,
                sets=[SET_NAME],
                kind=self.kind,
                box=self.box,
                shape=self.shape,
                vocabulary=self.vocabulary,
                fields=self._fields or {},
                command=self.command,
            )
        for split, values in metadata.items():  # last: without dataset.json no loader takes the folder for a data set
            text = json.dumps(values.model_dump(exclude_defaults=True))
            (self._partial / split / "dataset.json").write_text(text, encoding="utf-8")
        _refuse_to_replace(self.output_dir, self.overwrite)  # again: it may have been filled while the build ran
        move_into_place(self._partial, self.output_dir)
        remove(self.output_dir.with_name(f".{self.output_dir.name}{REPLACED}"))  # of a build killed while it renamed


def _field_format(name: str, array: np.ndarray) -> ExampleField:
    if not is_field_name(name):
        raise ValueError(f"field {name!r} can't be named so; expected an identifier that is no standard array's name")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"field {name!r} holds {array.dtype}, expected integers or floats")
    dtype: Literal["int32", "float32"] = "float32" if array.dtype.kind == "f" else "int32"
    limits = np.iinfo(np.int32)
    if dtype == "int32" and array.size and not limits.min <= array.min() <= array.max() <= limits.max:
        raise ValueError(f"field {name!r} holds {array.min()} to {array.max()}, expected numbers that fit int32")
    return ExampleField(shape=array.shape[1:], dtype=dtype)


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    """Raise UserError unless `folder` is absent, empty or, with `overwrite`, only a data set: nothing else is lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give --output-dir a new folder")
    entries = {entry.name for entry in folder.iterdir()} - {".DS_Store"}
    if not entries:
        return
    ours = entries <= {"identifiers.json", "test_puzzles.json", *SPLITS} and all(
        (folder / split / "dataset.json").is_file() for split in entries & set(SPLITS)
    )
    strays = [
        str(path)
        for split in sorted(entries & set(SPLITS))
        for path in ((folder / split).iterdir() if (folder / split).is_dir() else ())
        if path.suffix != ".npy" and path.name not in ("dataset.json", ".DS_Store")
    ]
    if not ours or not entries & set(SPLITS) or strays:
        found = strays[0] if ours and strays else ", ".join(sorted(entries)[:4])
        raise UserError(
            f"{folder} is not empty and not only a data set (found {found}): give --output-dir a new folder"
        )
    if not overwrite:
        raise UserError(f"{folder} is a data set already: --overwrite replaces it, or give --output-dir a new folder")


def _process_runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):  # unknown or another user's: leave it
        return True
    return True
