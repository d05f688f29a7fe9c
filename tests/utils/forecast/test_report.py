"""Times and lines of a forecast, as people read them."""

from __future__ import annotations

from utils.forecast.report import duration_text, table


def test_times_are_in_the_unit_in_which_people_plan() -> None:
    """A month has to look like a month."""
    seconds = (0.0321, 4.07, 45, 720, 27_000, 2_600_000, 101_000_000)
    found = [duration_text(each) for each in seconds]
    assert found == ["0.032 s", "4.1 s", "45 s", "12 min", "7.5 hours", "30 days", "3.2 years"]


def test_texts_stand_below_each_other() -> None:
    assert table("title", [("a", "1"), ("long name", "2")]) == "title\n  a          1\n  long name  2"
