"""Puzzles as text for a terminal and as pictures for W&B: the puzzle, the model's answer and the truth."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from common import IGNORE_LABEL_ID
from dataset.mazes import GOAL, START
from dataset.metadata import PuzzleDatasetMetadata
from dataset.sudoku import BLANK_TOKEN
from utils.evaluation import puzzle_kinds as kinds
from utils.evaluation.puzzle_kinds import Board, Kind, boards_of, box_of, kind_of, symbol

_GAP = "   "  # between boards in text
_BLOCK = 2  # columns of a terminal that make a square cell

# A picture's sizes in pixels
MARGIN, HEADING, NARROWEST_BOARD = 8, 20, 76
_LARGEST_CELL, _TALLEST_BOARD = 28, 480


# ------------------------------------------------------------------------------------------------ text


@dataclass(frozen=True)
class _Panel:
    """A board as text.

    Attributes:
        title: what stands above it.
        lines: its rows.
        line_width: columns of the terminal that each of them takes, without escape sequences.
    """

    title: str
    lines: list[str]
    line_width: int

    @property
    def width(self) -> int:
        return max(len(self.title), self.line_width)


def format_puzzle(
    sample: dict[str, np.ndarray],
    metadata: PuzzleDatasetMetadata,
    *,
    width: int = 80,
    coloured: bool = False,
    verdict: str | None = None,
) -> str:
    """Format puzzle, answer of the model and truth, side by side as long as they fit, else below one another.

    Wrong cells of the answer are marked: numbers with `*`; cells of mazes and ARC grids with a colour or cross, and
    without colours in a board of their own.

    Args:
        sample: integer arrays `inputs`, `preds` and, where the truth is known, `labels`, each `[s]`.
        metadata: of their split.
        width: columns of the terminal.
        coloured: whether the terminal shows colours.
        verdict: what stands beside the boards; None: the number of wrong cells.

    Returns:
        Lines of text: the titles with the verdict, then the rows of the boards.
    """
    kind = kind_of(metadata)
    boards = boards_of(sample, metadata)
    panels = [_panel(board, kind, metadata.vocabulary, coloured) for board in boards]
    labels = sample.get("labels", sample["preds"])
    num_wrong = int(((labels != IGNORE_LABEL_ID) & (sample["preds"] != labels)).sum())
    wrong = boards[1].wrong
    if num_wrong and wrong is not None and kind in ("maze", "arc") and not coloured:
        marks = ["".join("x" if cell else "." for cell in row) for row in wrong]
        panels.append(_Panel("wrong", marks, len(marks[0])))
    if verdict is None:
        verdict = f"{num_wrong} wrong cell{'s' if num_wrong > 1 else ''}" if num_wrong else "right"
    panels.append(_Panel(verdict, [], 0))

    rows: list[list[_Panel]] = [[]]
    for panel in panels:
        used = sum(earlier.width + len(_GAP) for earlier in rows[-1])
        if rows[-1] and used + panel.width > width:
            rows.append([])
        rows[-1].append(panel)
    return "\n".join(line for row in rows for line in _side_by_side(row))


def _side_by_side(panels: list[_Panel]) -> list[str]:
    lines = [_GAP.join(panel.title.ljust(panel.width) for panel in panels)]
    for i in range(max(len(panel.lines) for panel in panels)):
        parts = []
        for panel in panels:
            if i < len(panel.lines):
                parts.append(panel.lines[i] + " " * (panel.width - panel.line_width))
            else:
                parts.append(" " * panel.width)
        lines.append(_GAP.join(parts))
    return [line.rstrip() for line in lines]


def _panel(board: Board, kind: Kind, vocabulary: list[str] | None, coloured: bool) -> _Panel:
    wrong = np.zeros_like(board.given) if board.wrong is None else board.wrong
    if kind in ("sudoku", "tokens"):
        symbols = [[symbol(kind, token, vocabulary) for token in row] for row in board.tokens.tolist()]
        longest = max(len(text) for row in symbols for text in row)
        right = "" if board.wrong is None else " "
        lines = [
            " ".join(
                text.rjust(longest) + ("*" if is_wrong else right) for text, is_wrong in zip(row, marks, strict=True)
            )
            for row, marks in zip(symbols, wrong, strict=True)
        ]
        return _Panel(board.title, lines, len(lines[0]))
    show = _coloured_cell if coloured else lambda kind, token, _: symbol(kind, token)
    lines = [
        "".join(show(kind, token, is_wrong) for token, is_wrong in zip(row, marks, strict=True))
        for row, marks in zip(board.tokens.tolist(), wrong.tolist(), strict=True)
    ]
    return _Panel(board.title, lines, board.tokens.shape[1] * (_BLOCK if coloured and kind == "arc" else 1))


def _coloured_cell(kind: Kind, token: int, wrong: bool) -> str:
    """Return a cell of an ARC grid as a block in its colour, with a cross if it is wrong; of a maze, red if so."""
    if kind == "arc":
        paper = kinds.colour(kind, token) or kinds.PAPER
        dark = sum(ImageColor.getrgb(paper)[:3]) < 3 * 128
        return _painted("><" if wrong else " " * _BLOCK, kinds.PAPER if dark else kinds.INK, paper)
    return _painted(symbol(kind, token), kinds.PAPER, kinds.WRONG) if wrong else symbol(kind, token)


def _painted(text: str, ink: str, paper: str) -> str:
    return f"\x1b[38;5;{_terminal_colour(ink)};48;5;{_terminal_colour(paper)}m{text}\x1b[0m"


def _terminal_colour(colour: str) -> int:
    """Return the nearest of the 6×6×6 colours that all terminals have: macOS' shows no others."""
    levels = np.array([0, 95, 135, 175, 215, 255])
    red, green, blue = (int(np.abs(levels - part).argmin()) for part in ImageColor.getrgb(colour)[:3])
    return 16 + 36 * red + 6 * green + blue


# ------------------------------------------------------------------------------------------------ pictures


def draw_puzzle(sample: dict[str, np.ndarray], metadata: PuzzleDatasetMetadata) -> Image.Image:
    """Draw puzzle, answer of the model and truth side by side, with headings and the boxes of a Sudoku.

    Digits that the puzzle lacks are blue, wrong ones red; a cross marks wrong cells of mazes and ARC grids.

    Args:
        sample: integer arrays `inputs`, `labels` and `preds`, each `[s]`.
        metadata: of their split.

    Returns:
        An RGB picture.
    """
    boards = boards_of(sample, metadata)
    cell = cell_size(boards)
    widths = [max(NARROWEST_BOARD, board.tokens.shape[1] * cell) for board in boards]
    tallest = max(board.tokens.shape[0] for board in boards) * cell
    size = sum(widths) + (len(boards) + 1) * MARGIN, MARGIN + HEADING + tallest + MARGIN
    draw = ImageDraw.Draw(image := Image.new("RGB", size, kinds.PAPER))
    left = MARGIN
    for board, width in zip(boards, widths, strict=True):
        draw.text((left, MARGIN + HEADING / 2), board.title, fill=kinds.MUTED, font=_font(13.0), anchor="lm")
        _draw_board(draw, board, metadata, left, MARGIN + HEADING, cell)
        left += width + MARGIN
    return image


def cell_size(boards: list[Board]) -> int:
    """Return the pixels of a cell, the same in all boards of a picture."""
    return min(_LARGEST_CELL, max(1, _TALLEST_BOARD // max(max(board.tokens.shape) for board in boards)))


def _draw_board(
    draw: ImageDraw.ImageDraw, board: Board, metadata: PuzzleDatasetMetadata, left: int, top: int, cell: int
) -> None:
    kind, vocabulary = kind_of(metadata), metadata.vocabulary
    rows, cols = board.tokens.shape
    for (row, col), token in np.ndenumerate(board.tokens):
        wrong = board.wrong is not None and bool(board.wrong[row, col])
        given = bool(board.given[row, col])
        text = symbol(kind, int(token), vocabulary)
        _draw_cell(draw, kind, int(token), text, given, wrong, left + col * cell, top + row * cell, cell)
    right, bottom = left + cols * cell, top + rows * cell

    def lines(every_row: int, every_col: int, ink: str, thick: int) -> None:
        for y in range(top, bottom + 1, every_row * cell):
            draw.line((left, y, right, y), ink, thick)
        for x in range(left, right + 1, every_col * cell):
            draw.line((x, top, x, bottom), ink, thick)

    if kind == "maze":
        return
    lines(1, 1, kinds.LINE, 1)
    if kind == "sudoku":
        lines(*box_of(metadata), kinds.INK, 2)


def _draw_cell(
    draw: ImageDraw.ImageDraw, kind: Kind, token: int, text: str, given: bool, wrong: bool, x: int, y: int, cell: int
) -> None:
    area = (x, y, x + cell, y + cell)
    colour = kinds.colour(kind, token)
    if colour is not None:
        draw.rectangle(area, fill=colour)
        if kind == "maze" and token in (START + 1, GOAL + 1):
            _draw_text(draw, text, kinds.PAPER, x, y, cell)
        if wrong:
            near, far = round(cell * 0.3), round(cell * 0.7)
            for ink, thick in ((kinds.INK, 4), (kinds.PAPER, 2)):  # stands out from any colour
                draw.line((x + near, y + near, x + far, y + far), ink, thick)
                draw.line((x + near, y + far, x + far, y + near), ink, thick)
        return
    if wrong or given:
        draw.rectangle(area, fill=kinds.WRONG_PAPER if wrong else kinds.CLUE_PAPER)
    ink = kinds.WRONG if wrong else kinds.INK if given or kind != "sudoku" else kinds.FILLED
    if kind == "sudoku" and token == BLANK_TOKEN:
        if wrong:
            draw.ellipse((x + cell * 0.4, y + cell * 0.4, x + cell * 0.6, y + cell * 0.6), fill=ink)
    else:
        _draw_text(draw, text, ink, x, y, cell)


def _draw_text(draw: ImageDraw.ImageDraw, text: str, ink: str, x: int, y: int, cell: int) -> None:
    size = cell * (0.6 if len(text) <= 2 else 1.2 / len(text))
    draw.text((x + cell / 2, y + cell / 2), text, fill=ink, font=_font(max(1.0, size)), anchor="mm")


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
