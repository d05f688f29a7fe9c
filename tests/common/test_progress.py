"""Progress: a bar in a terminal, and in a log file lines that can be read."""

from __future__ import annotations

import io
import sys
import time

import pytest
from tqdm import tqdm

from common import progress
from common.progress import progress_bar


def work(steps: int, seconds: float) -> None:
    with progress_bar(total=steps, desc="train", unit="step") as bar:
        for step in range(steps):
            bar.update()
            bar.set_postfix(loss="0.5", refresh=False)
            if step % 10 == 0:
                tqdm.write(f"step {step}")
            time.sleep(seconds)


def test_a_log_has_a_plain_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log of a run of days would be one endless line, with blank ones around each message; or say nothing."""
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.1)
    work(40, 0.01)
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"step {step}" for step in range(0, 40, 10)]
    assert "\r" not in out + err
    assert 1 <= len(err.splitlines()) <= 6  # 40 steps
    for line in err.splitlines():
        assert line.startswith("train:")
        assert "/40 [" in line
        assert "loss=0.5" in line


def test_what_takes_less_than_a_minute_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    work(40, 0.0)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    work(3, 0.0)
    assert "\rtrain: 100%|" in terminal.getvalue()
