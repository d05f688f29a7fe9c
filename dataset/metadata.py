"""The content of `dataset.json`, and the names and types that the format fixes."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveInt

SET_NAME = "all"
BLANK_IDENTIFIER = "<blank>"
SPLITS = ("train", "test")
INDEX_DTYPE = np.dtype(np.int32)
TOKEN_DTYPE = np.dtype(np.uint8)
# Files of a set, `<set>__<name>.npy`: no field can have these names
STANDARD_ARRAYS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
MAX_SYMBOL_LENGTH = 4  # more would not fit into a cell


class ExampleField(BaseModel):
    """The format of a further array in batches, `[b, *shape]`.

    Attributes:
        shape: of one example's entry, `[]` for a number.
        dtype: in batches; files may hold other integers, and for float32 any real numbers.
    """

    model_config = ConfigDict(frozen=True)

    shape: tuple[PositiveInt, ...]
    dtype: Literal["int32", "float32"]


def is_field_name(name: str) -> bool:
    """Return whether an `ExampleField` may have this name: an identifier that is no standard array's name."""
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None and name not in STANDARD_ARRAYS


def is_symbol(text: str) -> bool:
    """Return whether a vocabulary may hold this text: 1 to 4 characters, none of which a terminal would obey."""
    return 1 <= len(text) <= MAX_SYMBOL_LENGTH and text.isprintable()


class PuzzleDatasetMetadata(BaseModel):
    """The `dataset.json` of one split. Unknown keys are ignored, so that files with later additions stay readable.

    Files of the PyTorch code, and of other programs, lack the last six.

    Attributes:
        pad_id: token of padding rows.
        ignore_label_id: label token without loss; None if every label counts.
        blank_identifier_id: puzzle identifier of padding rows.
        vocab_size: number of tokens.
        seq_len: S, tokens of a puzzle.
        num_puzzle_identifiers: rows of the puzzle embedding.
        total_groups: groups of the split.
        mean_puzzle_examples: examples per puzzle over the whole split.
        sets: names of the sets.
        kind: what the puzzles are: "sudoku", "maze", "arc" or another builder's word.
        box: rows and columns of a Sudoku's box.
        shape: rows and columns of a board; their product is seq_len.
        vocabulary: the symbol of each token, vocab_size texts as `is_symbol` allows; the first, the padding's, is
            empty.
        fields: the arrays in `<set>__<field>.npy` that batches hold beside the standard ones, by name.
        command: the builder's command line without `--output-dir`.
    """

    model_config = ConfigDict(frozen=True)

    pad_id: int
    ignore_label_id: int | None
    blank_identifier_id: int
    vocab_size: int
    seq_len: int
    num_puzzle_identifiers: int
    total_groups: int
    mean_puzzle_examples: float
    sets: list[str]
    kind: str | None = None
    box: tuple[int, int] | None = None
    shape: tuple[int, int] | None = None
    vocabulary: list[str] | None = None
    fields: dict[str, ExampleField] = {}
    command: str | None = None


def bare_metadata(seq_len: int, vocab_size: int, **keys: Any) -> PuzzleDatasetMetadata:
    """Return the metadata of puzzles that lie in no data set.

    Args:
        seq_len: S, tokens of a puzzle.
        vocab_size: number of tokens.
        keys: others, such as `kind` and `box`.
    """
    without: dict[str, Any] = {
        "pad_id": 0,
        "ignore_label_id": 0,
        "blank_identifier_id": 0,
        "num_puzzle_identifiers": 1,
        "total_groups": 1,
        "mean_puzzle_examples": 1.0,
        "sets": [SET_NAME],
    }
    return PuzzleDatasetMetadata(seq_len=seq_len, vocab_size=vocab_size, **without | keys)
