"""Where room is short: the list on a phone, and names that are longer than the list is wide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_data import make_tiny_data
from tests.helpers.viewer import Folders, Viewer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["mini-sudoku", "arc"])
def test_the_list_is_on_a_phone_s_first_screen(browser: Any, evaluated: dict[str, Folders], kind: str) -> None:
    """Below the boards and the film nobody would find it; and what it leads to must show as well."""
    viewer = Viewer(browser, has_touch=True, is_mobile=True)
    viewer.page.set_viewport_size({"width": 390, "height": 844})
    viewer.open(evaluated[kind].dataset, evaluated[kind].predictions)
    assert viewer.page.evaluate("scrollY") == 0
    assert viewer.page.evaluate("document.documentElement.scrollWidth") <= 390
    box = viewer.page.locator("#list").bounding_box()
    assert box["y"] + box["height"] < 700
    name = viewer.page.locator("#name").bounding_box()
    assert box["y"] < name["y"] < 800
    viewer.page.locator("#list [role=option]").nth(1).tap()
    viewer.until("view.shownTicket === view.ticket && view.example > 0")
    assert viewer.text("#name") == viewer.listed()[1].replace("Group", "Example")
    viewer.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_long_names_end_in_their_augmentation(viewer: Viewer, tmp_path: Path, width: int) -> None:
    """A thousand entries that all read `a-task-with-a-long-name…` are no list."""
    folder = make_tiny_data(tmp_path / "tiny", identifiers=4)
    ends = ["_t3_0123456789", "_t7_0987654321", "-second-half"]
    starts = ["a-task-with-a-long-name-" * 3, "short", "one-without-augmentation-" * 3]
    names = ["<blank>", *(start + end for start, end in zip(starts, ends, strict=True))]
    (folder / "identifiers.json").write_text(json.dumps(names))
    viewer.page.set_viewport_size({"width": width, "height": 844})
    viewer.open(folder)
    assert viewer.listed()[:4] == ["Group 0", *names[1:]]  # whole for a search in the page and for copying
    for row, end in ((1, ends[0]), (2, ends[1]), (3, "d-half")):
        name = viewer.page.locator("#list .name").nth(row)
        start, rest = name.locator("span").all()
        outer, first, last = name.bounding_box(), start.bounding_box(), rest.bounding_box()
        assert rest.inner_text() == end
        assert last["y"] == pytest.approx(first["y"], abs=6)  # on one line
        assert last["x"] + last["width"] <= outer["x"] + outer["width"] + 1, width
        assert first["x"] + first["width"] <= last["x"] + 1
        is_cut = start.evaluate("part => part.scrollWidth > part.clientWidth")
        assert is_cut == (row != 2)
        assert name.get_attribute("title") == names[row]
