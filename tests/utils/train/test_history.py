"""metrics.jsonl: every line whole and valid, and after a resume as if the run had never ended."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from utils.train.history import History


def lines(folder: Path) -> list[dict[str, Any]]:
    """The lines as a strict reader of JSON takes them."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_line_for_each_time_that_something_is_logged(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        history.log({"num_params": 5}, 0)
        history.log({"train/lm_loss": 0.1 + 0.2, "train/lr": 1e-45}, 1)
        found = lines(tmp_path)  # also while the run goes on, and after a kill -9
    assert found == [{"step": 0, "num_params": 5}, {"step": 1, "train/lm_loss": 0.1 + 0.2, "train/lr": 1e-45}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_lacks_becomes_null(tmp_path: Path, value: float) -> None:
    """Other readers than Python's refuse a file with NaN as a whole."""
    with History(tmp_path) as history:
        history.log({"eval/lm_loss": value, "eval/accuracy": 0.5}, 3)
    assert lines(tmp_path) == [{"step": 3, "eval/lm_loss": None, "eval/accuracy": 0.5}]


def test_a_resumed_run_goes_on_where_the_checkpoint_stands(tmp_path: Path) -> None:
    """Steps after it are taken, and logged, once more. The last line was being written when the run was killed."""
    with History(tmp_path) as history:
        for step in (1, 2):
            history.log({"train/lm_loss": 1.0 / step}, step)
        length = history.synced_length()
        assert length == (tmp_path / "metrics.jsonl").stat().st_size
        history.log({"train/lm_loss": 0.5}, 3)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 4, "train/lm_')
    with History(tmp_path, length) as history:
        assert [line["step"] for line in lines(tmp_path)] == [1, 2]
        history.log({"train/lm_loss": 0.25}, 3)
        assert history.synced_length() > length
    assert lines(tmp_path)[2:] == [{"step": 3, "train/lm_loss": 0.25}]


def test_a_run_without_a_checkpoint_begins_the_file_anew(tmp_path: Path) -> None:
    """Killed before its first one, it starts from step 0: a plot would go back in time."""
    for _ in range(2):
        with History(tmp_path) as history:
            history.log({"train/lr": 0.1}, 1)
    assert len(lines(tmp_path)) == 1


def test_a_file_that_is_gone_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    with History(tmp_path, 1000) as history:
        history.log({"train/lr": 0.1}, 8)
    assert lines(tmp_path) == [{"step": 8, "train/lr": 0.1}]


@pytest.mark.parametrize("left", [None, 0, 10])
def test_a_lost_log_is_told(tmp_path: Path, left: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """A plot would begin in the middle of the run, and nobody know why."""
    with History(tmp_path) as history:
        history.log({"train/lm_loss": 0.5}, 1)
        length = history.synced_length()
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(content[:left])
    with History(tmp_path, length):
        said = capsys.readouterr().err
    assert said.startswith(f"warning: {path} holds {left or 0} bytes, {length} were logged before the checkpoint")
    assert said.count("\n") == 1
    path.write_bytes(content)
    with History(tmp_path, length):
        assert capsys.readouterr().err == ""
