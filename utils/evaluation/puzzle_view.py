"""Puzzles as text for a terminal and as pictures for W&B. Square puzzles are shown as grids.

A vocabulary of side + 2 tokens on a square grid (padding, blank and the digits) is shown as Sudoku, with digits. Other
puzzles show their tokens.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common import IGNORE_LABEL_ID

_CELL, _MARGIN = 28, 8  # pixels
_PAPER, _INK, _LINE, _WRONG, _ANSWER = "#ffffff", "#1a1a1a", "#b8b8b8", "#d62728", "#1f6fb4"
_COLOURS = (
    "#000000",
    "#3b3b3b",
    "#f4f4f4",
    "#2ca02c",
    "#d62728",
    "#1f77b4",
    "#ffdd57",
    "#999999",
    "#e377c2",
    "#ff7f0e",
)


def _grid_shape(length: int) -> tuple[int, int]:
    side = math.isqrt(length)
    return (side, side) if side * side == length else (1, length)


def is_sudoku(length: int, vocab_size: int) -> bool:
    """Return whether puzzles of this length and vocabulary are Sudoku grids of any size."""
    rows, columns = _grid_shape(length)
    return rows == columns > 1 and vocab_size == rows + 2


def _symbol(token: int, sudoku: bool) -> str:
    if token == IGNORE_LABEL_ID:
        return "-"
    if sudoku:
        return "." if token <= 1 else str(token - 1)
    return str(token)


def format_puzzle(sample: dict[str, np.ndarray], vocab_size: int) -> str:
    """Format puzzle, answer of the model and truth side by side; wrong cells of the answer are marked with `*`.

    Args:
        sample: integer arrays `inputs`, `labels` and `preds`, each `[s]`.
        vocab_size: number of tokens.

    Returns:
        Lines of text: the titles, then one for each row of the grid.
    """
    rows, columns = _grid_shape(len(sample["inputs"]))
    sudoku = is_sudoku(rows * columns, vocab_size)
    wrong = (sample["labels"] != IGNORE_LABEL_ID) & (sample["preds"] != sample["labels"])

    def grid(name: str, marks: np.ndarray | None = None) -> list[str]:
        symbols = [_symbol(int(token), sudoku) for token in sample[name]]
        width = max(map(len, symbols))
        cells = [symbol.rjust(width) for symbol in symbols]
        if marks is not None:
            cells = [cell + ("*" if mark else " ") for cell, mark in zip(cells, marks, strict=True)]
        return [" ".join(cells[row * columns : (row + 1) * columns]) for row in range(rows)]

    panels = [("puzzle", grid("inputs")), ("answer", grid("preds", wrong)), ("truth", grid("labels"))]
    widths = [max(len(title), len(lines[0])) for title, lines in panels]
    verdict = "right" if not wrong.any() else f"{wrong.sum()} wrong cell{'s' if wrong.sum() > 1 else ''}"
    lines = ["   ".join(title.ljust(width) for (title, _), width in zip(panels, widths, strict=True)) + f"   {verdict}"]
    for row in range(rows):
        lines.append("   ".join(grid[row].ljust(width) for (_, grid), width in zip(panels, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def draw_puzzle(sample: dict[str, np.ndarray], vocab_size: int) -> Image.Image:
    """Draw puzzle, prediction and truth side by side. Digits that the puzzle lacks are blue, wrong ones red.

    Args:
        sample: integer arrays `inputs`, `labels` and `preds`, each `[s]`.
        vocab_size: number of tokens.

    Returns:
        An RGB picture.
    """
    rows, columns = _grid_shape(len(sample["inputs"]))
    sudoku = is_sudoku(rows * columns, vocab_size)
    cell = _CELL if sudoku else max(4, _CELL // 3)
    width, height = columns * cell, rows * cell
    image = Image.new("RGB", (3 * width + 4 * _MARGIN, height + 2 * _MARGIN), _PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=cell * 0.6)

    for panel, name in enumerate(("inputs", "preds", "labels")):
        left = _MARGIN + panel * (width + _MARGIN)
        for index, token in enumerate(sample[name]):
            x, y = left + index % columns * cell, _MARGIN + index // columns * cell
            box = (x, y, x + cell, y + cell)
            label = sample["labels"][index]
            wrong = name == "preds" and label not in (IGNORE_LABEL_ID, token)
            if sudoku:
                given = sample["inputs"][index] == token
                draw.rectangle(box, outline=_WRONG if wrong and token <= 1 else _LINE)  # no digit to print in red
                if token > 1:
                    ink = _WRONG if wrong else _INK if given else _ANSWER
                    draw.text((x + cell / 2, y + cell / 2), str(token - 1), fill=ink, font=font, anchor="mm")
            else:
                draw.rectangle(box, fill=_COLOURS[int(token) % len(_COLOURS)], outline=_WRONG if wrong else None)
    return image
