"""ARC tasks that users type or hand over: what is accepted, and the one line about what is not."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError, explain
from dataset.puzzle_text import read_arc_tasks
from tests.helpers.arc_source import random_task


@pytest.fixture
def raw_task() -> dict[str, Any]:
    task = random_task(0)
    del task["test"][0]["output"]
    return task


def arc(given: str, stdin: str = "") -> dict[str, dict[str, Any]]:
    tasks = read_arc_tasks(given, io.StringIO(stdin))
    assert all(task.is_evaluation for task in tasks)
    return {task.task_id: task.raw() for task in tasks}


def test_arc_tasks_may_be_given_in_all_ways(tmp_path: Path, raw_task: dict[str, Any]) -> None:
    """A task that has no answer yet, which is what one wants to ask, could not be given."""
    text, both = json.dumps(raw_task), json.dumps({"a": raw_task, "b": raw_task})
    assert arc(text) == arc("-", text) == arc(f" \n{text}") == {"puzzle 1": raw_task}
    assert arc(both) == arc("-", both) == {"a": raw_task, "b": raw_task}
    (tmp_path / "0a1b.json").write_text(f"\ufeff{text}", encoding="utf-8")
    assert arc(str(tmp_path / "0a1b.json")) == {"0a1b": raw_task}
    (tmp_path / "challenges.json").write_text(both)
    assert list(arc(str(tmp_path / "challenges.json"))) == ["a", "b"]
    (tmp_path / "._0a1b.json").write_text("left by macOS")
    assert list(arc(str(tmp_path))) == ["0a1b", "a", "b"]


def test_what_is_no_arc_task_is_refused(tmp_path: Path, raw_task: dict[str, Any]) -> None:
    """A traceback, or a grid that no board holds."""
    wrong = json.loads(json.dumps(raw_task))
    wrong["train"][0]["output"] = [[10]]
    unpaired = json.loads(json.dumps(raw_task))
    del unpaired["train"][0]["output"]
    (tmp_path / "one.json").write_text("{")
    (tmp_path / "one.txt").write_text("{}")
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice").mkdir()
    for name in ("a", "b"):
        (tmp_path / "twice" / f"{name}.json").write_text(json.dumps({"a": raw_task}))
    refused = {
        "{": "puzzle 1 is not valid JSON",
        "[" * 100_000: "puzzle 1 is not valid JSON",
        "{}": "puzzle 1 has no 'train', expected a list of at least one pair",
        "[]": "puzzle 1 holds a list of 0, expected an object with 'train' and 'test'",
        "what": "puzzle 1 is not valid JSON",
        json.dumps(wrong): "puzzle 1: train pair 1: row 1 of the output has colour 10",
        json.dumps(unpaired): "puzzle 1: train pair 1 has no 'output'",
        json.dumps({"a\nb": wrong}): "puzzle 1: task 'a\\nb': train pair 1: row 1 of the output has colour 10",
        "missing.json": "missing.json is missing",
        "no/folder": "no/folder is missing",
        str(tmp_path / "one.json"): "one.json is not valid JSON",
        str(tmp_path / "one.txt"): "one.txt is no .json file: give ARC tasks as JSON",
        str(tmp_path / "bytes.json"): "bytes.json: not UTF-8 text",
        str(tmp_path / "empty"): "empty holds no .json files; expected ARC tasks, as in ARC-AGI/data/evaluation",
        str(tmp_path / "twice"): "b.json: there is a task a already; expected each once",
    }
    for given, message in refused.items():
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            arc(given)
        line = explain(caught.value) or ""
        assert "\n" not in line
        assert len(line) < 400
