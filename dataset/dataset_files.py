"""The files of one split of a data set: opened, and checked before anything else relies on them.

Reads the HRM data format, also files made elsewhere that hold tokens in any integer dtype. Every problem is a
UserError that names the file, what was found, what is expected and the command that builds the data set.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from common.errors import UserError
from dataset.metadata import PuzzleDatasetMetadata

SCAN_BYTES = 16 << 20
SET_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ExampleSet:
    """One set of a split. Offsets: puzzle i holds examples puzzle_indices[i]..[i+1], group g likewise puzzles."""

    name: str
    inputs: np.ndarray  # (examples, S), memory-mapped, any integer dtype
    labels: np.ndarray  # (examples, S), memory-mapped, any integer dtype
    puzzle_identifiers: np.ndarray  # (puzzles,) int32
    puzzle_indices: np.ndarray  # (puzzles + 1,) int64
    group_indices: np.ndarray  # (groups + 1,) int64


def build_command(path: Path) -> str:
    """The command that probably builds the data set at `path`, guessed from the folder's name."""
    name = path.name.lower()
    copies = re.search(r"aug-(\d+)", name)
    size = re.search(r"(\d+)x(\d+)", name)
    if "maze" in name:
        if size and "hard" not in name:
            return f"python dataset/build_mini_maze_dataset.py --side {size[1]} --output-dir {path}"
        return f"python dataset/build_maze_dataset.py --output-dir {path}"
    if "arc" in name:
        dirs = " --dataset-dirs dataset/raw-data/ARC-AGI-2/data" if "arc-2" in name else ""
        return f"python dataset/build_arc_dataset.py{dirs} --output-dir {path}" + (
            f" --num-aug {copies[1]}" if copies else ""
        )
    box = {"4x4": (2, 2), "6x6": (2, 3), "8x8": (2, 4), "9x9": (3, 3)}.get(size[0] if size else "")
    if box:
        options = f"--box-rows {box[0]} --box-cols {box[1]}"
        return f"python dataset/build_mini_sudoku_dataset.py {options} --output-dir {path}"
    if "sudoku" in name:
        thousands = re.search(r"(\d+)k\b", name)
        options = f" --subsample-size {thousands[1]}000" if thousands else ""
        options += f" --num-aug {copies[1]}" if copies else ""
        return f"python dataset/build_sudoku_dataset.py --output-dir {path}{options}"
    return f"python dataset/build_<sudoku|mini_sudoku|maze|mini_maze|arc>_dataset.py --output-dir {path}"


def read_metadata(path: Path, split: str) -> PuzzleDatasetMetadata:
    build = f"Build it: {build_command(path)}"
    if not path.is_dir():
        raise UserError(f"no data set at {path}: there is no such folder. {build}")
    if not (path / split).is_dir():
        raise UserError(f"{path} has no split {split!r}: not a data set, or half-built. {build}")
    file = path / split / "dataset.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: not a data set, or half-built. {build}")
    try:
        metadata = PuzzleDatasetMetadata.model_validate_json(file.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        found = "" if problem["type"] in ("missing", "json_invalid") else f" (found {problem['input']!r})"
        raise UserError(f"{file}: {where + ': ' if where else ''}{problem['msg']}{found}. {build}") from error
    limits = {
        "seq_len": (1, None),
        "vocab_size": (1, None),
        "num_puzzle_identifiers": (1, None),
        "pad_id": (0, metadata.vocab_size),
        "blank_identifier_id": (0, metadata.num_puzzle_identifiers),
    }
    for key, (low, limit) in limits.items():
        value = getattr(metadata, key)
        if value < low or (limit is not None and value >= limit):
            expected = f"at least {low}" if limit is None else f"{low} to {limit - 1}"
            raise UserError(f"{file}: {key} is {value}, expected {expected}. {build}")
    if metadata.box is not None and (min(metadata.box) < 1 or math.prod(metadata.box) ** 2 != metadata.seq_len):
        raise UserError(
            f"{file}: box is {list(metadata.box)}, expected two numbers that multiply to the side of a square board of "
            f"{metadata.seq_len} cells. {build}"
        )
    names = metadata.sets
    if not names or len(set(names)) < len(names) or not all(SET_NAME_PATTERN.fullmatch(name) for name in names):
        raise UserError(
            f"{file}: sets is {json.dumps(names)}, expected distinct names of letters, digits, '_', '-', '.'. {build}"
        )
    return metadata


def _load_npy(file: Path, *, mmap: bool) -> np.ndarray:
    """An integer array from a .npy file; UserError if it is missing, truncated or of another kind."""
    again = f"Build the data set again: {build_command(file.parents[1])}"
    try:
        array = np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: the data set is incomplete. {again}") from None
    except (ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is truncated or not a .npy file ({reason.rstrip('.')}). {again}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"{file} holds {found}, expected integers. {again}")
    return array


def open_set(folder: Path, name: str, metadata: PuzzleDatasetMetadata) -> ExampleSet:
    def file(kind: str) -> Path:
        return folder / f"{name}__{kind}.npy"

    def fail(kind: str, found: str, expected: str) -> UserError:
        return UserError(
            f"{file(kind)}: {found}, expected {expected}. Build the data set again: {build_command(folder.parent)}"
        )

    arrays = {
        kind: _load_npy(file(kind), mmap=kind in ("inputs", "labels"))
        for kind in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
    }
    inputs, labels, identifiers = arrays["inputs"], arrays["labels"], arrays["puzzle_identifiers"]
    if inputs.ndim != 2 or inputs.shape[1] != metadata.seq_len or not len(inputs):
        raise fail("inputs", f"shape {inputs.shape}", f"(examples, {metadata.seq_len}) with at least one example")
    if labels.shape != inputs.shape:
        raise fail("labels", f"shape {labels.shape}", f"{inputs.shape}, the shape of the inputs")
    if identifiers.ndim != 1:
        raise fail("puzzle_identifiers", f"shape {identifiers.shape}", "one dimension")
    for kind, members, total in (
        ("puzzle_indices", "examples", len(inputs)),
        ("group_indices", "puzzles", len(identifiers)),
    ):
        offsets = arrays[kind] = arrays[kind].astype(np.int64)
        if offsets.ndim != 1 or len(offsets) < 2:
            raise fail(kind, f"shape {offsets.shape}", "one dimension with at least two offsets")
        if offsets[0] != 0:
            raise fail(kind, f"offsets start at {offsets[0]}", "0")
        falls = np.flatnonzero(np.diff(offsets) <= 0)
        if len(falls):
            at = int(falls[0])
            found = f"offsets go from {offsets[at]} to {offsets[at + 1]} at position {at}"
            raise fail(kind, found, "ascending offsets")
        if offsets[-1] != total:
            raise fail(kind, f"offsets end at {offsets[-1]}", f"{total}, the number of {members}")
    if len(identifiers) != len(arrays["puzzle_indices"]) - 1:
        raise fail(
            "puzzle_identifiers", f"{len(identifiers)} entries", f"{len(arrays['puzzle_indices']) - 1}, one per puzzle"
        )
    low, high = int(identifiers.min()), int(identifiers.max())
    if low < 0 or high >= metadata.num_puzzle_identifiers:
        bad = low if low < 0 else high
        raise fail("puzzle_identifiers", f"identifier {bad}", f"0 to {metadata.num_puzzle_identifiers - 1}")
    for kind, ignored in (("inputs", None), ("labels", metadata.ignore_label_id)):
        bad_token = _token_out_of_range(file(kind), arrays[kind], metadata.vocab_size, ignored)
        if bad_token is not None:
            raise fail(kind, f"token {bad_token}", f"0 to {metadata.vocab_size - 1} (vocab_size {metadata.vocab_size})")
    return ExampleSet(
        name, inputs, labels, identifiers.astype(np.int32), arrays["puzzle_indices"], arrays["group_indices"]
    )


def read_rows(tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows of a memory-mapped array `[n, S]`, read past the map: scattered over gigabytes, they would draw most of
    the file into this process's memory, since the system maps what surrounds a page as well."""
    assert isinstance(tokens, np.memmap)
    found: np.ndarray = np.empty((len(rows), tokens.shape[1]), tokens.dtype)
    bytes_per_row = tokens.shape[1] * tokens.itemsize
    with open(tokens.filename or "", "rb", buffering=0) as stream:
        for place, row in enumerate(rows):
            stream.seek(tokens.offset + int(row) * bytes_per_row)
            found[place] = np.fromfile(stream, tokens.dtype, tokens.shape[1])
    return found


def _token_out_of_range(file: Path, tokens: np.ndarray, vocab_size: int, ignored: int | None) -> int | None:
    """A token outside 0..vocab_size-1 and not `ignored`, or None.

    Reads the file in pieces rather than through the map, whose pages would all count as this process's memory.
    """
    assert isinstance(tokens, np.memmap)
    with open(file, "rb") as stream:
        stream.seek(tokens.offset)
        left = tokens.size
        while left:
            piece = np.fromfile(stream, dtype=tokens.dtype, count=min(left, SCAN_BYTES // tokens.itemsize))
            if not len(piece):
                raise UserError(f"{file} ended early while it was read: it is being changed by another process")
            left -= len(piece)
            if int(piece.max()) >= vocab_size or int(piece.min()) < 0:
                wrong = (piece >= vocab_size) | (piece < 0)
                if ignored is not None:
                    wrong &= piece != ignored
                if wrong.any():
                    return int(piece[wrong][0])
    return None
