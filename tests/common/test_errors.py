"""Messages about values from elsewhere: short, in one line, whatever the value is."""

from __future__ import annotations

from common.errors import shown


def test_what_files_say_is_shown_in_one_short_line() -> None:
    """A value of a foreign file would fill the screen, or fail where the message is printed."""
    assert shown("a\nb") == r"'a\nb'"
    assert shown("x" * 500) == "'" + "x" * 78 + "…"
    assert shown("\ud800") == r"'\ud800'"  # print would fail on it
    assert len(shown([["x" * 500] * 500] * 500)) <= 80
    assert shown(1 << 20_000) == "int with too many digits to show"
