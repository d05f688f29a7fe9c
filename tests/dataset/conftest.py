"""The source that several builders' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.sources import make_source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with 12 training and 7 test Sudoku."""
    return make_source(tmp_path / "source")
