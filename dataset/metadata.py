"""What `dataset.json` holds, and the names and types that the format fixes."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

SET_NAME = "all"
BLANK_IDENTIFIER = "<blank>"
SPLITS = ("train", "test")
INDEX_DTYPE = np.dtype(np.int32)
TOKEN_DTYPE = np.dtype(np.uint8)


class PuzzleDatasetMetadata(BaseModel):
    """`dataset.json` of one split. Unknown keys are ignored, so that files with later additions stay readable.

    `mean_puzzle_examples` is examples per puzzle over the whole split; `ignore_label_id` is the label token that
    carries no loss (None: every label counts).

    Not in files made before or elsewhere: `kind`, what the puzzles are ("sudoku", "maze", "arc" or another builder's
    word), and `box`, the rows and columns of a Sudoku's box.
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
