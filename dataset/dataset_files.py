"""The files of one split of a data set, opened and checked.

Reads the HRM data format, also files made elsewhere that hold tokens in any integer dtype. Every problem is a
UserError that names the file, what was found, what is expected and how to build the data set.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from common.errors import UserError, shown, shown_name
from dataset.metadata import MAX_SYMBOL_LENGTH, SPLITS, PuzzleDatasetMetadata, is_field_name, is_symbol
from dataset.npy_file import load_npy

SCAN_BYTES = 16 << 20
# Of what a model's tables are made for: beyond them MLX ends the process, or memory does. Published: 900, 12, a million
MAX_SEQ_LEN, MAX_VOCAB_SIZE, MAX_IDENTIFIERS = 1 << 20, 1 << 20, 1 << 24
SET_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ExampleSet:
    """One set of a split. Puzzle i has the examples puzzle_indices[i] to puzzle_indices[i + 1], group g likewise."""

    name: str
    inputs: np.ndarray  # (examples, S), memory-mapped, any integer dtype
    labels: np.ndarray  # (examples, S), memory-mapped, any integer dtype
    puzzle_identifiers: np.ndarray  # (puzzles,) int32
    puzzle_indices: np.ndarray  # (puzzles + 1,) int64
    group_indices: np.ndarray  # (groups + 1,) int64
    fields: dict[str, np.ndarray]  # (examples, ...), memory-mapped, integers or floats of any size


def how_to_build(path: Path) -> str:
    """Return the end of a message: how to build the data set at `path`.

    That is the command in its `dataset.json`, if it can be read and is nothing but a builder's command line: a file
    may come from anywhere, and the user may paste the command into a shell.
    """
    for split in SPLITS:
        try:
            file = path / split / "dataset.json"
            command = json.loads(file.read_bytes())["command"] if file.is_file() else ""
            words = shlex.split(command)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        is_quoted = shlex.join(words) == command and command.isprintable()
        if is_quoted and words[:1] == ["python"] and re.fullmatch(r"dataset/build_\w+\.py", "".join(words[1:2])):
            return f"build it with {command} --output-dir {shlex.quote(str(path))} --overwrite"
    return "build it with a script in dataset/, build_*_dataset.py (README, Dataset Preparation)"


def read_metadata(path: Path, split: str) -> PuzzleDatasetMetadata:
    """Read and check the `dataset.json` of a split.

    Args:
        path: the data set's folder.
        split: `train` or `test`.

    Raises:
        UserError: if there is no such data set or split, or a value is missing or impossible.
    """
    build = how_to_build(path)
    if not path.is_dir():
        raise UserError(f"no data set at {path}: there is no such folder; {build}")
    if not (path / split).is_dir():
        raise UserError(f"{path} has no split {split!r}: not a data set, or half-built; {build}")
    file = path / split / "dataset.json"
    if not file.is_file():
        raise UserError(f"{file} is missing: not a data set, or half-built; {build}")
    return parse_metadata(file.read_bytes(), str(file), build)


def parse_metadata(text: str | bytes, file: str, remedy: str) -> PuzzleDatasetMetadata:
    """Parse and check what a `dataset.json` holds.

    Args:
        text: JSON.
        file: where it is from, for messages.
        remedy: what to do about a problem, for messages.

    Raises:
        UserError: if a value is missing or impossible.
    """
    try:
        metadata = PuzzleDatasetMetadata.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(shown_name, problem["loc"]))
        found = "" if problem["type"] in ("missing", "json_invalid") else f" (found {shown(problem['input'])})"
        raise UserError(f"{file}: {where + ': ' if where else ''}{problem['msg']}{found}; {remedy}") from error
    limits = {
        "seq_len": (1, MAX_SEQ_LEN),
        "vocab_size": (1, MAX_VOCAB_SIZE),
        "num_puzzle_identifiers": (1, MAX_IDENTIFIERS),
        "pad_id": (0, metadata.vocab_size - 1),
        "blank_identifier_id": (0, metadata.num_puzzle_identifiers - 1),
    }
    for key, (low, high) in limits.items():
        value = getattr(metadata, key)
        if not low <= value <= high:
            raise UserError(f"{file}: {key} is {shown(value)}, expected {low} to {high}; {remedy}")
    mean = metadata.mean_puzzle_examples
    if not (math.isfinite(mean) and mean > 0):
        raise UserError(f"{file}: mean_puzzle_examples is {mean}, expected a number above 0; {remedy}")
    if metadata.box is not None and (min(metadata.box) < 1 or math.prod(metadata.box) ** 2 != metadata.seq_len):
        raise UserError(
            f"{file}: box is {list(metadata.box)}, expected two numbers that multiply to the side of a square board of "
            f"{metadata.seq_len} cells; {remedy}"
        )
    if metadata.shape is not None and (min(metadata.shape) < 1 or math.prod(metadata.shape) != metadata.seq_len):
        raise UserError(
            f"{file}: shape is {shown(list(metadata.shape))}, expected rows and columns that multiply to seq_len = "
            f"{metadata.seq_len}; {remedy}"
        )
    if metadata.vocabulary is not None:
        wrong = _problem_of_vocabulary(metadata.vocabulary, metadata.vocab_size)
        if wrong is not None:
            raise UserError(f"{file}: vocabulary {wrong}; {remedy}")
    names = metadata.sets
    if not names or len(set(names)) < len(names) or not all(SET_NAME_PATTERN.fullmatch(name) for name in names):
        raise UserError(
            f"{file}: sets is {shown(names)}, expected distinct names of letters, digits, '_', '-', '.'; {remedy}"
        )
    for name in metadata.fields:
        if not is_field_name(name):
            raise UserError(
                f"{file}: fields has {shown(name)}, expected names of letters, digits and '_', and no standard "
                f"array's; {remedy}"
            )
    return metadata


def _problem_of_vocabulary(vocabulary: list[str], vocab_size: int) -> str | None:
    """Return what is wrong with a vocabulary, or None."""
    if len(vocabulary) != vocab_size:
        return f"has {len(vocabulary)} symbols, expected {vocab_size} (vocab_size)"
    padding, *symbols = vocabulary
    if padding:
        return f"begins with {shown(padding)}, expected an empty text for padding"
    for symbol in symbols:
        if not is_symbol(symbol):
            return f"has {shown(symbol)}, expected texts of 1 to {MAX_SYMBOL_LENGTH} printable characters"
    for symbol, count in Counter(symbols).most_common(1):
        if count > 1:
            return f"has {shown(symbol)} {count} times, expected distinct symbols"
    return None


def _load_npy(file: Path, *, mmap: bool, kinds: str = "iu") -> np.ndarray:
    """Load an array of integers, or of another of numpy's `kinds`, from a .npy file."""
    build = how_to_build(file.parents[1])
    try:
        array = load_npy(file, "r" if mmap else None)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: the data set is incomplete; {build}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is truncated or not a .npy file ({error}); {build}") from error
    if array.dtype.kind not in kinds:
        expected = "numbers" if "f" in kinds else "integers"
        raise UserError(f"{file} holds {str(array.dtype)[:80]}, expected {expected}; {build}")
    return array


def open_set(folder: Path, name: str, metadata: PuzzleDatasetMetadata, *, check_tokens: bool = True) -> ExampleSet:
    """Open a set of a split, and check every file of it.

    Args:
        folder: of the split.
        name: of the set.
        metadata: of the split.
        check_tokens: whether to read the token files, gigabytes in ARC, to check every token.

    Raises:
        UserError: if a file is missing, damaged, or doesn't fit the metadata and the other files.
    """

    def file(kind: str) -> Path:
        return folder / f"{name}__{kind}.npy"

    def fail(kind: str, found: str, expected: str) -> UserError:
        return UserError(f"{file(kind)}: {found}, expected {expected}; {how_to_build(folder.parent)}")

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
    for kind, ignored in (("inputs", None), ("labels", metadata.ignore_label_id)) if check_tokens else ():
        bad_token = _integer_outside(file(kind), arrays[kind], 0, metadata.vocab_size - 1, ignored)
        if bad_token is not None:
            raise fail(kind, f"token {bad_token}", f"0 to {metadata.vocab_size - 1} (vocab_size {metadata.vocab_size})")
    fields = {}
    for kind, field in metadata.fields.items():
        array = fields[kind] = _load_npy(file(kind), mmap=True, kinds="iuf" if field.dtype == "float32" else "iu")
        expected = (len(inputs), *field.shape)
        if array.shape != expected:
            raise fail(kind, f"shape {array.shape}", f"{expected}, one entry per example of the shape in dataset.json")
        if field.dtype == "int32" and not np.can_cast(array.dtype, np.int32):
            limits = np.iinfo(np.int32)
            outside = _integer_outside(file(kind), array, limits.min, limits.max)
            if outside is not None:
                raise fail(kind, f"entry {outside}", "numbers that fit int32")
    return ExampleSet(
        name, inputs, labels, identifiers.astype(np.int32), arrays["puzzle_indices"], arrays["group_indices"], fields
    )


def read_rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Read some rows of a memory-mapped array from its file, not through the map.

    Rows scattered over gigabytes would map most of the file into this process's memory, since the system maps what
    surrounds a page as well.

    Args:
        array: `[n, ...]`, memory-mapped.
        rows: integer `[k]`.

    Returns:
        `[k, ...]`, of the dtype of `array`.
    """
    assert isinstance(array, np.memmap)
    found: np.ndarray = np.empty((len(rows), *array.shape[1:]), array.dtype)
    entries = math.prod(array.shape[1:])
    with open(array.filename or "", "rb", buffering=0) as stream:
        for place, row in enumerate(rows):
            stream.seek(array.offset + int(row) * entries * array.itemsize)
            found[place] = np.fromfile(stream, array.dtype, entries).reshape(array.shape[1:])
    return found


def _integer_outside(file: Path, array: np.ndarray, low: int, high: int, ignored: int | None = None) -> int | None:
    """Find an integer outside low..high that is not `ignored`, or None.

    Reads the file in chunks rather than through the map, whose pages would all count as this process's memory.
    """
    assert isinstance(array, np.memmap)
    with open(file, "rb") as stream:
        stream.seek(array.offset)
        left = array.size
        while left:
            piece = np.fromfile(stream, dtype=array.dtype, count=min(left, SCAN_BYTES // array.itemsize))
            if not len(piece):
                raise UserError(f"{file} has become shorter while it was read: another process changes it; try again")
            left -= len(piece)
            if int(piece.max()) > high or int(piece.min()) < low:
                wrong = (piece > high) | (piece < low)
                if ignored is not None:
                    wrong &= piece != ignored
                if wrong.any():
                    return int(piece[wrong][0])
    return None
