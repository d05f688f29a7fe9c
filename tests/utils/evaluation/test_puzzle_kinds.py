"""What kind a puzzle is shown as, and that it looks the same in terminal, W&B, notebook and viewer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.configs import sizes
from utils.evaluation import puzzle_kinds as kinds

VIEWER = Path(__file__).resolve().parents[3] / "assets" / "viewer"


@pytest.mark.parametrize(
    ("length", "vocab_size", "expected"),
    [
        *((81, 11, "sudoku"), (16, 6, "sudoku"), (36, 8, "sudoku")),
        *((900, 12, "arc"), (900, 6, "maze"), (100, 6, "maze")),
        *((1, 3, "tokens"), (80, 11, "tokens"), (899, 12, "tokens")),
    ],
)
def test_a_kind_is_known_by_its_sizes_where_it_has_no_name(length: int, vocab_size: int, expected: str) -> None:
    """A data set that the PyTorch code has built would be shown as numbers."""
    assert kinds.kind_of(sizes(length, vocab_size)) == expected


def test_the_name_of_a_kind_counts_more_than_its_sizes() -> None:
    """A maze of 4×4 has the sizes of a Sudoku."""
    for name, expected in (("maze", "maze"), ("sudoku", "sudoku"), ("chess", "tokens")):
        assert kinds.kind_of(sizes(16, 6).model_copy(update={"kind": name})) == expected


def test_symbols_of_its_own_make_a_kind_of_its_own() -> None:
    """Letters of a 4×4 board would be shown as the digits of a Sudoku."""
    metadata = sizes(16, 6).model_copy(update={"vocabulary": ["", "a", "b", "c", "d", "e"]})
    assert kinds.kind_of(metadata) == "tokens"
    assert kinds.kind_of(metadata.model_copy(update={"kind": "sudoku"})) == "sudoku"


def test_a_token_without_a_symbol_is_its_number() -> None:
    """A model with more tokens than its data has symbols would end the evaluation when it is shown."""
    assert [kinds.symbol("tokens", token, ["", "a"]) for token in (0, 1, 2, -7)] == ["", "a", "2", "-7"]


def test_the_box_of_a_sudoku() -> None:
    assert kinds.box_of(sizes(36, 8).model_copy(update={"box": (3, 2)})) == (3, 2)
    for length, expected in ((36, (2, 3)), (81, (3, 3)), (64, (2, 4)), (25, (1, 5))):
        assert kinds.box_of(sizes(length, 11)) == expected


def test_the_palette_is_the_viewer_s() -> None:
    """A colour would mean one thing on the page and another in W&B."""
    script = (VIEWER / "kinds.js").read_text(encoding="utf-8")

    def array(name: str) -> tuple[str, ...]:
        found = re.search(rf"const {name} = \[(.*?)\]", script, re.DOTALL)
        assert found is not None
        return tuple(re.findall(r'"(.*?)"', found[1]))

    assert array("ARC_COLOURS") == kinds.ARC_COLOURS
    assert array("MAZE_COLOURS") == kinds.MAZE_COLOURS
    assert array("MAZE_SYMBOLS") == tuple(kinds.symbol("maze", token) for token in range(6))
    style = (VIEWER / "viewer.css").read_text(encoding="utf-8").partition("}")[0]  # the light theme
    names = {
        "paper": kinds.PAPER,
        "clue-paper": kinds.CLUE_PAPER,
        "wrong-paper": kinds.WRONG_PAPER,
        "ink": kinds.INK,
        "filled": kinds.FILLED,
        "wrong": kinds.WRONG,
        "muted": kinds.MUTED,
        "line": kinds.LINE,
        "pad": kinds.ARC_PAD,
        "end": kinds.ARC_END,
    }
    assert dict(re.findall(r"--([\w-]+): (#\w+);", style)).items() >= names.items()
