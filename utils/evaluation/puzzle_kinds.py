"""Kinds of puzzles, and the symbols, colours and boards that show them in the terminal, in W&B and in the notebook.

They are the viewer's (`assets/viewer/kinds.js` and `viewer.css`): a cell looks the same wherever it is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from common import IGNORE_LABEL_ID
from dataset import arc_grids, mazes
from dataset.kinds import Kind, kind_of
from dataset.metadata import PuzzleDatasetMetadata
from dataset.sudoku import BLANK_TOKEN

# Colours 0 to 9 as on arcprize.org, and the tokens around a grid
ARC_COLOURS = (
    "#000000",
    "#0074d9",
    "#ff4136",
    "#2ecc40",
    "#ffdc00",
    "#aaaaaa",
    "#f012be",
    "#ff851b",
    "#7fdbff",
    "#870c25",
)
ARC_PAD, ARC_END = "#e4e8ed", "#b9c1cc"
MAZE_COLOURS = ("#8a8f98", "#2b3440", "#f3f1ea", "#1f9d55", "#d6336c", "#f2b134")  # by token; 0 is padding
PAPER, CLUE_PAPER, WRONG_PAPER = "#ffffff", "#edf0f4", "#fde3e2"
INK, FILLED, WRONG, MUTED, LINE = "#1d2530", "#1763b6", "#c2242f", "#5b6675", "#c9d0d9"

_LONGEST_ROW = 32  # of tokens that are no square
_NO_CELL = -1  # after the last token of such a board


def box_of(metadata: PuzzleDatasetMetadata) -> tuple[int, int]:
    """Return rows and columns of a Sudoku's box, the most nearly square one where dataset.json names none."""
    side = math.isqrt(metadata.seq_len)
    box_rows = next(rows for rows in range(math.isqrt(side), 0, -1) if side % rows == 0)
    return metadata.box or (box_rows, side // box_rows)


def symbol(kind: Kind, token: int, vocabulary: list[str] | None = None) -> str:
    """Return what stands for a token in text: one character, a number, or the symbol of its own that a puzzle has.

    Args:
        kind: of the puzzle.
        token: any number.
        vocabulary: of dataset.json; used where the kind has no symbols.
    """
    if token == _NO_CELL:
        return ""
    if token == IGNORE_LABEL_ID:
        return "-"
    if kind == "sudoku":
        return str(token - 1) if token > BLANK_TOKEN else "." if token == BLANK_TOKEN else "?"
    if kind == "maze":
        return mazes.ALPHABET[token - 1] if 1 <= token <= len(mazes.ALPHABET) else "?"
    if kind == "arc":
        return {arc_grids.PAD: ".", arc_grids.END: "|"}.get(token, str(token - arc_grids.FIRST_COLOUR))
    return vocabulary[token] if vocabulary is not None and 0 <= token < len(vocabulary) else str(token)


def colour(kind: Kind, token: int) -> str | None:
    """Return the colour of a cell as `#rrggbb`; None where the token is shown as text on paper."""
    of_tokens = {"maze": MAZE_COLOURS, "arc": (ARC_PAD, ARC_END, *ARC_COLOURS)}.get(kind, ())
    return of_tokens[token] if 0 <= token < len(of_tokens) else None


@dataclass(frozen=True)
class Board:
    """A board as it is shown, all arrays `[rows, cols]`.

    Attributes:
        title: what stands above it.
        tokens: its cells, int.
        given: cells that the puzzle has filled in, bool; of Sudoku alone.
        wrong: cells that differ from the label, bool; of an answer alone, else None.
    """

    title: str
    tokens: np.ndarray
    given: np.ndarray
    wrong: np.ndarray | None = None


def boards_of(sample: dict[str, np.ndarray], metadata: PuzzleDatasetMetadata) -> list[Board]:
    """Lay the puzzle, the model's answer and the truth out as boards. Those of ARC are cropped to their grids.

    Args:
        sample: integer arrays `inputs`, `preds` and, where the truth is known, `labels`, each `[s]`.
        metadata: of their split.

    Returns:
        The boards: puzzle, answer and, with labels, truth.
    """
    kind = kind_of(metadata)
    is_known = "labels" in sample
    names = ("inputs", "labels" if is_known else "preds", "preds")
    inputs, labels, preds = (np.asarray(sample[name], np.int64) for name in names)
    wrong = (labels != IGNORE_LABEL_ID) & (preds != labels)
    if kind == "arc":  # what is not scored there is padding
        labels = np.where(labels == IGNORE_LABEL_ID, arc_grids.PAD, labels)
    if metadata.vocabulary is not None:  # a smaller board has nothing beyond its end, whatever the model puts there
        beyond = inputs == metadata.pad_id
        labels, preds = (np.where(beyond, metadata.pad_id, tokens) for tokens in (labels, preds))

    rows, cols = metadata.shape or _shape(len(inputs))
    whole = (slice(0, rows), slice(0, cols))
    of_puzzle = of_answer = of_truth = whole
    if kind == "arc" and len(inputs) == arc_grids.SEQ_LEN:
        of_puzzle = _grid_area(inputs) or whole
        of_truth = _grid_area(labels) or _grid_area(preds) or whole
        of_answer = _with_missed_end(of_truth, wrong)

    def laid_out(cells: np.ndarray, area: tuple[slice, slice]) -> np.ndarray:
        filler = False if cells.dtype == bool else _NO_CELL
        return np.pad(cells, (0, rows * cols - len(cells)), constant_values=filler).reshape(rows, cols)[area]

    given = (inputs > BLANK_TOKEN) & (kind == "sudoku")
    puzzle = Board("puzzle", laid_out(inputs, of_puzzle), laid_out(given, of_puzzle))
    answer = Board("answer", laid_out(preds, of_answer), laid_out(given, of_answer), laid_out(wrong, of_answer))
    if not is_known:
        return [puzzle, replace(answer, wrong=None)]
    return [puzzle, answer, Board("truth", laid_out(labels, of_truth), laid_out(given, of_truth))]


def _shape(length: int) -> tuple[int, int]:
    side = math.isqrt(length)
    return (side, side) if side * side == length else (math.ceil(length / _LONGEST_ROW), min(length, _LONGEST_ROW))


def _grid_area(tokens: np.ndarray) -> tuple[slice, slice] | None:
    """Return the rectangle around the colours, wherever on the board they are; None if there are none."""
    is_colour = tokens.reshape(arc_grids.SIDE, arc_grids.SIDE) >= arc_grids.FIRST_COLOUR
    rows, cols = (np.flatnonzero(is_colour.any(axis=axis)) for axis in (1, 0))
    return (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)) if len(rows) else None


def _with_missed_end(area: tuple[slice, slice], wrong: np.ndarray) -> tuple[slice, slice]:
    """Make an area longer by the row below it and the column beside it where an answer has missed the grid's end."""
    rows, cols = area
    board = wrong.reshape(arc_grids.SIDE, arc_grids.SIDE)
    below = board[rows.stop : rows.stop + 1, cols].any()
    beside = board[rows, cols.stop : cols.stop + 1].any()
    return slice(rows.start, rows.stop + int(below)), slice(cols.start, cols.stop + int(beside))
