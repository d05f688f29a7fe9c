"""The rules of Sudoku of any box shape: the cells of rows, columns and boxes, and valid solutions.

A board is uint8 `[S]` of digits, 0 for a blank. A token is digit + 1, since token 0 is padding.
"""

from __future__ import annotations

import numpy as np

BLANK_TOKEN = 1


class Board:
    """The geometry of a Sudoku.

    Args:
        box_rows: rows of a box.
        box_cols: columns of a box.

    Attributes:
        side: n = box_rows * box_cols, the number of digits.
        cells: S = n * n.
        units: the cells of each row, column and box, int `[3, n, n]`.
        units_of: the row, column and box of each cell as indices into the 3n units, int `[S, 3]`.
        mask_of: the mask of each digit, `[n + 1]`: bit d - 1 is set for digit d, and none for a blank. uint16 to 16x16.
        every_digit: the mask of a cell where every digit is possible.
    """

    def __init__(self, box_rows: int, box_cols: int) -> None:
        self.box_rows, self.box_cols = box_rows, box_cols
        self.side = n = box_rows * box_cols
        self.cells = n * n
        cell = np.arange(self.cells)
        row, col = cell // n, cell % n
        box = row // box_rows * box_rows + col // box_cols
        self.units = np.stack([np.argsort(unit, kind="stable").reshape(n, n) for unit in (row, col, box)])
        self.units_of = np.stack((row, n + col, 2 * n + box), axis=1)
        dtype = np.result_type(np.uint16, np.min_scalar_type((1 << n) - 1))
        self.mask_of = np.array([0, *(1 << digit for digit in range(n))], dtype)
        self.every_digit = np.bitwise_or.reduce(self.mask_of)

    def has_every_digit(self, masks: np.ndarray) -> np.ndarray:
        """Check which boards have every digit in each row, column and box.

        Args:
            masks: the digits of each cell, `[b, S]`.

        Returns:
            bool `[b]`.
        """
        # (b band row stack column): there are n / box_rows = box_cols bands, and n / box_cols = box_rows stacks
        boards = masks.reshape(-1, self.box_cols, self.box_rows, self.box_rows, self.box_cols)
        rows, cols, boxes = (np.bitwise_or.reduce(boards, axis=axes) for axes in ((3, 4), (1, 2), (2, 4)))
        units = np.stack([unit.reshape(-1, self.side) for unit in (rows, cols, boxes)], axis=1)
        return (units == self.every_digit).all(axis=(1, 2))

    def is_solution(self, boards: np.ndarray) -> np.ndarray:
        """Check which boards are complete and break no rule.

        Args:
            boards: digits `[b, S]` of any integer dtype; other numbers than 1 to n count as blanks.

        Returns:
            bool `[b]`.
        """
        is_digit = (boards >= 1) & (boards <= self.side)
        return self.has_every_digit(self.mask_of[np.where(is_digit, boards, 0)])

    def is_valid_answer(self, inputs: np.ndarray, preds: np.ndarray) -> np.ndarray:
        """Check which answers keep all clues and are a solution.

        A puzzle with several solutions has several valid answers, of which the label is one.

        Args:
            inputs: tokens `[b, S]` of the puzzles.
            preds: tokens `[b, S]` of the answers.

        Returns:
            bool `[b]`.
        """
        clues_kept = ((inputs <= BLANK_TOKEN) | (inputs == preds)).all(axis=1)
        return clues_kept & self.is_solution(preds.astype(np.int64) - 1)
