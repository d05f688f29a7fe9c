"""How puzzles of each kind are written as text, and what is no puzzle of that kind and size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from common.errors import UserError, shown
from dataset import mazes
from dataset.kinds import kind_of, sudoku_board
from dataset.metadata import PuzzleDatasetMetadata
from dataset.sudoku import BLANK_TOKEN, Board

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # the digits from 10 on
BLANKS = ".0_"
FRAME = "|+-" + "".join(map(chr, range(0x2500, 0x2580)))  # what may be drawn between the cells of a Sudoku
COMMENT = "#"
FEWEST_WORD_LETTERS = 3  # a line with fewer characters that no maze has is a row with a mistake, not a comment
PAIRS_COLUMNS = ("input", "output")  # of files with puzzles of one's own
PADDING = ""  # of boards smaller than the largest
UNKNOWN = "?"  # a token that no cell of an answer can have

Row = list[str]  # the symbol of each cell
NumberedLine = tuple[int, str]


def lines_of(text: str) -> list[str]:
    """Divide a text into its lines."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


def notation_of(metadata: PuzzleDatasetMetadata) -> Notation:
    """Return how the puzzles of a data set are written.

    Raises:
        UserError: for ARC, and kinds without known symbols.
    """
    kind = kind_of(metadata)
    if kind == "sudoku":
        return _Sudoku(metadata)
    if kind == "maze":
        return _Maze(metadata)
    if kind == "arc":
        raise UserError("this model works on ARC tasks: give them as JSON")
    if metadata.vocabulary is None:
        raise UserError(
            "this model's puzzles can't be typed: its dataset.json names no vocabulary, the symbol of each token"
        )
    return _Symbols(metadata, metadata.vocabulary)


class Notation:
    """How puzzles of one kind and size are written.

    Attributes:
        shape: rows and columns of a board.
        size: the puzzles in words, with their size.
        questions: the token of each symbol of a puzzle.
        answers: the token of each symbol of an answer.
        expected: those symbols in words.
        expected_in_answers: those of an answer.
        columns: of a CSV file, with puzzles and answers.
    """

    columns = ("question", "answer")
    hint = ""  # what a row of another length may be due to

    def __init__(
        self,
        metadata: PuzzleDatasetMetadata,
        plural: str,
        *,
        questions: Mapping[str, int],
        expected: str,
        answers: Mapping[str, int],
        expected_in_answers: str,
    ) -> None:
        self.num_cells = metadata.seq_len
        side = math.isqrt(self.num_cells)
        square = (side, side) if side * side == self.num_cells else (1, self.num_cells)
        rows, cols = metadata.shape or square
        if rows * cols != self.num_cells:
            raise UserError(f"dataset.json: shape is {rows}x{cols}, expected a product of seq_len = {self.num_cells}")
        self.shape = rows, cols
        named = f"{rows}x{cols} {plural}"
        self.size = f"{named} with {self.num_cells} cells"
        tokens = 1 + max(*questions.values(), *answers.values())
        if metadata.vocab_size < tokens:  # the model would be asked for embeddings that it has not
            raise UserError(f"dataset.json: vocab_size is {metadata.vocab_size}, expected {tokens} tokens for {named}")
        self.questions, self.expected = questions, expected
        self.answers, self.expected_in_answers = answers, expected_in_answers

    def uses(self, character: str) -> bool:
        """Return whether a symbol of a puzzle has this character."""
        return any(character in symbol for symbol in self.questions)

    def is_empty(self, line: str) -> bool:
        """Return whether a line ends a block."""
        return not line.strip()

    def is_comment(self, line: str) -> bool:
        """Return whether a line is no part of a puzzle."""
        return line.lstrip().startswith(COMMENT)

    def cells(self, line: str) -> Row:
        """Return the symbols of the cells in a line."""
        raise NotImplementedError

    def check(self, name: str, inputs: np.ndarray) -> None:
        """Refuse a puzzle that has no answer: tokens int32 `[s]`."""

    def check_answer(self, name: str, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Refuse the answer to another puzzle: tokens int32 `[s]` each."""

    def boards(self, block: Sequence[NumberedLine]) -> Iterator[tuple[int, list[Row]]]:
        """Divide lines in sequence into boards: each line is one, or all together are, each being a row."""
        rows = [(number, cells) for number, line in block if (cells := self.cells(line))]
        lengths = [len(cells) for _, cells in rows]
        if not rows:
            return
        # Lines of another size than the model's are told as such one by one, and not as rows of one huge board
        is_other_size = lengths[0] != len(rows) and lengths[0] != self.shape[1] and _is_square(lengths[0])
        if self.num_cells in lengths or is_other_size:
            yield from ((number, [cells]) for number, cells in rows)
        else:
            yield rows[0][0], [cells for _, cells in rows]

    def rows_of(self, text: str) -> list[Row]:
        """Return the rows of one puzzle, those of a field of a CSV file."""
        return [cells for line in lines_of(text) if (cells := self.cells(line))]

    def question(self, name: str, rows: list[Row]) -> np.ndarray:
        """Return a puzzle's tokens, int32 `[s]`.

        Raises:
            UserError: if these rows are no puzzle that the model can solve.
        """
        inputs = self._tokens(name, rows, self.questions, self.expected)
        self.check(name, inputs)
        return inputs

    def answer(self, name: str, inputs: np.ndarray, rows: list[Row]) -> np.ndarray:
        """Return the tokens of an answer, int32 `[s]`.

        Raises:
            UserError: if these rows are no answer to the puzzle `inputs`.
        """
        labels = self._tokens(name, rows, self.answers, self.expected_in_answers)
        self.check_answer(name, inputs, labels)
        return labels

    def text(self, tokens: np.ndarray) -> str:
        """Write a board, tokens int `[s]`, as `read_puzzles` reads it: one line, or for mazes one of each row."""
        symbol_of: dict[int, str] = {}
        for symbol, token in (*self.answers.items(), *self.questions.items()):
            symbol_of.setdefault(token, symbol)
        return self.join([symbol_of.get(token, UNKNOWN) for token in tokens.tolist()])

    def join(self, symbols: Row) -> str:
        """Write the symbols of a board's cells."""
        return "".join(symbols)

    def rows(self, symbols: Row) -> list[Row]:
        """Divide the cells of a board into rows."""
        return [symbols[start : start + self.shape[1]] for start in range(0, len(symbols), self.shape[1])]

    def place(self, cell: int) -> str:
        """Name a cell as a user counts."""
        row, col = divmod(cell, self.shape[1])
        return f"row {row + 1}, column {col + 1}"

    def _tokens(self, name: str, rows: list[Row], table: Mapping[str, int], expected: str) -> np.ndarray:
        lengths = [len(row) for row in rows]
        if lengths != [self.num_cells] and lengths != [self.shape[1]] * self.shape[0]:
            self._refuse_size(name, lengths)
        cells = [cell for row in rows for cell in row]
        for number, cell in enumerate(cells):
            if cell not in table:
                raise UserError(f"{name}: {shown(cell, 40)} at {self.place(number)}, expected {expected}")
        return np.array([table[cell] for cell in cells], np.int32)

    def _refuse_size(self, name: str, lengths: list[int]) -> None:
        if len(set(lengths)) > 1:
            row, length = next((i, length) for i, length in enumerate(lengths, 1) if length != self.shape[1])
            raise UserError(
                f"{name}: row {row} has {length} cells, expected {self.shape[1]}: {self.size} are solved{self.hint}"
            )
        laid_out = f" ({len(lengths)} rows of {lengths[0]})" if len(lengths) > 1 and not _is_board(lengths) else ""
        raise UserError(f"{name} has {sum(lengths)} cells{laid_out}, this model solves {self.size}")


def _is_square(number: int) -> bool:
    return number > 1 and math.isqrt(number) ** 2 == number


def _is_board(lengths: list[int]) -> bool:
    return lengths == [len(lengths)] * len(lengths)


class _Sudoku(Notation):
    """Sudoku: digits, letters from 10 on, blanks, and frames between them."""

    def __init__(self, metadata: PuzzleDatasetMetadata) -> None:
        side = math.isqrt(metadata.seq_len)
        is_square = side * side == metadata.seq_len and metadata.shape in (None, (side, side))
        if not is_square or side > 9 + len(LETTERS):
            raise UserError(
                f"dataset.json: Sudoku with seq_len = {metadata.seq_len} can't be typed, "
                f"expected square ones with up to {9 + len(LETTERS)} rows"
            )
        digits = {str(digit): BLANK_TOKEN + digit for digit in range(1, min(side, 9) + 1)}
        letters = LETTERS[: max(side - 9, 0)]
        for digit, letter in enumerate(letters, 10):
            digits[letter] = digits[letter.lower()] = BLANK_TOKEN + digit
        named = f"a digit from 1 to {min(side, 9)}" + (f", a letter from A to {letters[-1]}" if letters else "")
        super().__init__(
            metadata,
            "Sudoku",
            questions=digits | dict.fromkeys(BLANKS, BLANK_TOKEN),
            expected=f"{named}, or '.', '0' or '_' for a blank",
            answers=digits,
            expected_in_answers=named,
        )
        # Where the shape of the boxes isn't known, boxes that are rows ask for nothing more than the rows
        self.board = sudoku_board(metadata)
        self.units = (self.board or Board(1, side)).units

    def cells(self, line: str) -> Row:
        return [character for character in line if not character.isspace() and character not in FRAME]

    def check(self, name: str, inputs: np.ndarray) -> None:
        in_units = np.sort(inputs[self.units], axis=2)
        repeated = (in_units[:, :, 1:] == in_units[:, :, :-1]) & (in_units[:, :, 1:] > BLANK_TOKEN)
        if not repeated.any():
            return
        kind, unit, position = np.argwhere(repeated)[0].tolist()
        token = int(in_units[kind, unit, position])
        cells = self.units[kind, unit]
        first, second = cells[inputs[cells] == token][:2].tolist()
        digit, unit_name = token - BLANK_TOKEN, ("row", "column", "box")[kind]
        raise UserError(
            f"{name}: {digit if digit <= 9 else LETTERS[digit - 10]} stands twice in a {unit_name}, "
            f"at {self.place(first)} and at {self.place(second)}: such a Sudoku has no solution"
        )

    def check_answer(self, name: str, inputs: np.ndarray, labels: np.ndarray) -> None:
        changed = np.flatnonzero((inputs > BLANK_TOKEN) & (inputs != labels))
        if len(changed):
            raise UserError(f"{name} has another digit than the puzzle at {self.place(int(changed[0]))}")
        if self.board is not None and not self.board.is_solution(labels[None] - BLANK_TOKEN).all():
            raise UserError(f"{name} is not a solved Sudoku: a row, column or box lacks a digit")


class _Maze(Notation):
    """Mazes, in which a space is an open cell, and `#` a wall or the beginning of a comment."""

    hint = " ('.' is an open cell as well, which no editor strips)"

    def __init__(self, metadata: PuzzleDatasetMetadata) -> None:
        tokens = {symbol: value + 1 for value, symbol in enumerate(mazes.ALPHABET)} | {".": mazes.OPEN + 1}
        path = mazes.ALPHABET[mazes.PATH]
        expected = "'#' (wall), ' ' or '.' (open), 'S' (start) or 'G' (goal)"
        super().__init__(
            metadata,
            "mazes",
            questions={symbol: token for symbol, token in tokens.items() if symbol != path},
            expected=f"{expected}; {path!r}, the path, is for the model to draw",
            answers=tokens,
            expected_in_answers=f"{expected}, or {path!r} (path)",
        )

    def is_empty(self, line: str) -> bool:
        return not line  # spaces are open cells

    def is_comment(self, line: str) -> bool:
        if not line.startswith(COMMENT):
            return False
        foreign = sum(character not in self.answers for character in line)
        is_row = len(line) in (self.shape[1], self.num_cells)
        return foreign >= (FEWEST_WORD_LETTERS if is_row else 1)

    def cells(self, line: str) -> Row:
        return list(line)

    def join(self, symbols: Row) -> str:
        return "\n".join(map("".join, self.rows(symbols)))

    def check(self, name: str, inputs: np.ndarray) -> None:
        maze = inputs.reshape(1, *self.shape) - 1
        for value, role in ((mazes.START, "start"), (mazes.GOAL, "goal")):
            count = int((maze == value).sum())
            if count != 1:
                raise UserError(f"{name} has {count} cells {mazes.ALPHABET[value]!r}, expected one {role}")
        if mazes.steps_to_goal(maze, maze != mazes.WALL)[0] < 0:
            raise UserError(f"{name}: no way leads from 'S' to 'G', expected a maze with one")

    def check_answer(self, name: str, inputs: np.ndarray, labels: np.ndarray) -> None:
        maze, answer = (tokens.reshape(1, *self.shape) - 1 for tokens in (inputs, labels))
        changed = np.flatnonzero((answer != maze) & ~((answer == mazes.PATH) & (maze == mazes.OPEN)))
        if len(changed):
            raise UserError(f"{name} has another cell than the puzzle at {self.place(int(changed[0]))}")
        if not mazes.is_path(answer).all():
            raise UserError(f"{name}'s 'o' cells are not one path from 'S' to 'G' that visits each of them once")


class _Symbols(Notation):
    """Puzzles in the symbols of a vocabulary."""

    columns = PAIRS_COLUMNS

    def __init__(self, metadata: PuzzleDatasetMetadata, vocabulary: list[str]) -> None:
        if len(vocabulary) != metadata.vocab_size:
            raise UserError(
                f"dataset.json: vocabulary has {len(vocabulary)} symbols, expected vocab_size = {metadata.vocab_size}"
            )
        # Of two tokens with one symbol, the first
        tokens = {symbol: token for token, symbol in reversed(list(enumerate(vocabulary)))}
        self.symbols = [symbol for symbol in vocabulary if symbol]
        some = " ".join(shown(symbol, 12) for symbol in self.symbols[:12]) + (" …" if len(self.symbols) > 12 else "")
        expected = f"one of {some}"
        super().__init__(
            metadata,
            "puzzles",
            questions=tokens,
            expected=expected,
            answers=tokens,
            expected_in_answers=expected,
        )
        self.is_padded = metadata.shape is not None
        self.is_characters = all(len(symbol) == 1 for symbol in self.symbols)
        self.has_spaces = self.is_characters and any(symbol.isspace() for symbol in self.symbols)

    def is_empty(self, line: str) -> bool:
        return not line if self.has_spaces else super().is_empty(line)

    def is_comment(self, line: str) -> bool:
        return super().is_comment(line) and not any(symbol.startswith(COMMENT) for symbol in self.symbols)

    def cells(self, line: str) -> Row:
        if self.has_spaces:
            return list(line)
        return list("".join(line.split())) if self.is_characters else line.split()

    def join(self, symbols: Row) -> str:
        text = ("" if self.is_characters else " ").join(symbols)
        # Padding, and symbols with a space beside others, only JSON can hold; and a board may look like JSON
        return text if self.rows_of(text) == [symbols] else json.dumps(self.rows(symbols), ensure_ascii=False)

    def boards(self, block: Sequence[NumberedLine]) -> Iterator[tuple[int, list[Row]]]:
        whole = self._json_rows("\n".join(line for _, line in block))
        if whole is not None:
            yield block[0][0], whole
            return
        each = [(number, self._json_rows(line)) for number, line in block]
        boards = [(number, rows) for number, rows in each if rows is not None]
        if len(boards) == len(block):
            yield from boards
        else:
            yield from super().boards(block)

    def rows_of(self, text: str) -> list[Row]:
        return self._json_rows(text) or super().rows_of(text)

    def _tokens(self, name: str, rows: list[Row], table: Mapping[str, int], expected: str) -> np.ndarray:
        height, widths = len(rows), sorted({len(row) for row in rows})
        fits = len(widths) == 1 and height <= self.shape[0] and 0 < widths[0] <= self.shape[1]
        if self.is_padded and fits and (height > 1 or self.shape[0] == 1):  # padded as their builder does
            wide = [[*row, *[PADDING] * (self.shape[1] - widths[0])] for row in rows]
            rows = [*wide, *[[PADDING] * self.shape[1]] * (self.shape[0] - height)]
        return super()._tokens(name, rows, table, expected)

    def question(self, name: str, rows: list[Row]) -> np.ndarray:
        if rows and rows[0] and rows[0][0].startswith("[") and not self.uses("["):
            raise UserError(f"{name} begins with '[', but is no JSON list of symbols, or of rows of them")
        return super().question(name, rows)

    def _json_rows(self, text: str) -> list[Row] | None:
        """Return the rows of a JSON list of symbols, or of rows of them; None for other text."""
        if not text.lstrip().startswith("["):
            return None
        try:
            listed = json.loads(text)
        except (ValueError, RecursionError):
            return None
        is_grid = bool(listed) and all(isinstance(row, list) for row in listed)
        return [[_symbol(cell) for cell in row] for row in (listed if is_grid else [listed])]


def _symbol(cell: object) -> str:
    """Return the symbol that a cell in JSON is: a text, or a number that stands for its digits."""
    if isinstance(cell, str):
        return cell
    return str(cell) if type(cell) is int else shown(cell, 40)
