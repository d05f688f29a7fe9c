"""What every data set builder shares: how a problem is told, what `dataset.json` holds, how a data set is written.

A data set in the HRM format is a folder with `identifiers.json` and the splits `train/` and `test/`, each holding
`dataset.json` and, per set, token arrays `[examples, seq_len]` with three index arrays that nest examples in puzzles
and puzzles in groups. A puzzle's augmented copies are puzzles of one group: training draws one of them per epoch.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import BaseModel

from common.errors import UserError
from common.files import expand_user
from dataset.metadata import BLANK_IDENTIFIER, INDEX_DTYPE, SET_NAME, SPLITS, TOKEN_DTYPE, PuzzleDatasetMetadata
from dataset.npy_stream import NpyStream


def check_minimums(options: BaseModel, **minimums: int) -> None:
    """UserError if an option (by its field's name) is below its minimum. An option left at None is none."""
    for key, low in minimums.items():
        value = getattr(options, key)
        if value is not None and value < low:
            raise UserError(f"--{key.replace('_', '-')} is {value}, expected at least {low}")


# ---------------------------------------------------------------------------------------------------- the one writer


class _SplitWriter:
    """The token streams and the growing index arrays of one split."""

    def __init__(self, folder: Path, seq_len: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.inputs = NpyStream(folder / f"{SET_NAME}__inputs.npy", (seq_len,), TOKEN_DTYPE)
        self.labels = NpyStream(folder / f"{SET_NAME}__labels.npy", (seq_len,), TOKEN_DTYPE)
        self.puzzle_identifiers: list[np.ndarray] = []
        self.examples_per_puzzle: list[np.ndarray] = []
        self.puzzles_per_group: list[np.ndarray] = []

    def finish(self) -> tuple[int, int, int]:
        """Write the index arrays; returns the number of groups, puzzles and examples."""
        if not self.inputs.rows:
            raise UserError(f"no puzzles for the split {self.folder.name!r}: there is nothing to build")
        self.inputs.finish()
        self.labels.finish()
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
        return counts[0], counts[1], self.inputs.rows

    def close(self) -> None:
        self.inputs.file.close()
        self.labels.file.close()


class DatasetWriter:
    """Writes one data set, all or nothing.

    Used as a context manager. Everything goes into a hidden folder beside `output_dir`, which takes its place when the
    block ends well, so an interrupted build never leaves something that looks like a data set. An existing data set at
    `output_dir` is replaced only then; any other non-empty folder there is refused (UserError, before any work).

    `identifiers` lists the puzzle names, index = identifier. A builder that names its puzzles appends to it. What it
    puts into `test_puzzles` (task id -> raw task) goes to test_puzzles.json. `kind`, `box`: see PuzzleDatasetMetadata.
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
    ) -> None:
        self.output_dir = expand_user(output_dir).resolve()
        self.seq_len, self.vocab_size, self.pad_id, self.ignore_label_id = seq_len, vocab_size, pad_id, ignore_label_id
        self.kind, self.box = kind, box
        self.identifiers = [BLANK_IDENTIFIER]
        self.test_puzzles: dict[str, Any] = {}
        _refuse_foreign_folder(self.output_dir)

    def __enter__(self) -> DatasetWriter:
        parent, name = self.output_dir.parent, self.output_dir.name
        parent.mkdir(parents=True, exist_ok=True)
        for stale in parent.iterdir():  # of builds that were killed
            if stale.name.startswith(f".{name}.partial-") and not _process_runs(stale.name.rpartition("-")[2]):
                shutil.rmtree(stale, ignore_errors=True)
        self._partial = parent / f".{name}.partial-{os.getpid()}"
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()
        self._splits = {split: _SplitWriter(self._partial / split, self.seq_len) for split in SPLITS}
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
    ) -> None:
        """Append whole groups to `train` or `test`: g groups of p puzzles of m examples in all.

        `inputs`, `labels`: tokens `[m, seq_len]`; `puzzle_identifiers`, `examples_per_puzzle`: `[p]`, summing to m;
        `puzzles_per_group`: `[g]`, summing to p. Raises ValueError if these disagree.
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
        writer = self._splits[split]
        writer.inputs.append(inputs)
        writer.labels.append(labels)
        writer.puzzle_identifiers.append(np.asarray(puzzle_identifiers))
        writer.examples_per_puzzle.append(np.asarray(examples_per_puzzle))
        writer.puzzles_per_group.append(np.asarray(puzzles_per_group))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for writer in self._splits.values():
                writer.close()
            shutil.rmtree(self._partial, ignore_errors=True)

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
            )
        for split, values in metadata.items():  # last: without dataset.json no loader takes the folder for a data set
            text = json.dumps(values.model_dump(exclude_defaults=True))
            (self._partial / split / "dataset.json").write_text(text, encoding="utf-8")
        self._move_into_place()

    def _move_into_place(self) -> None:
        _refuse_foreign_folder(self.output_dir)  # again: it may have been filled while the build ran
        if not self.output_dir.exists():
            self._partial.rename(self.output_dir)
            return
        # A folder can't be swapped in one step everywhere, so the old one steps aside and comes back if that fails.
        old = self.output_dir.with_name(f".{self.output_dir.name}.partial-old-{os.getpid()}")
        self.output_dir.rename(old)
        try:
            self._partial.rename(self.output_dir)
        except OSError:
            old.rename(self.output_dir)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign_folder(folder: Path) -> None:
    """UserError unless `folder` is absent, empty or a data set and nothing else: replacing it must lose nothing."""
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


def _process_runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):  # not ours to judge: leave it
        return True
    return True
