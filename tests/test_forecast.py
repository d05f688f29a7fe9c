"""forecast=true as users run it: its numbers are those of the run that follows, and it leaves no trace."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluate
import pretrain
from tests.helpers.tiny_data import BATCH, NUM_TEST, make_tiny_data, train_arguments
from utils.checkpoints.record import step_folders
from utils.forecast import forecast
from utils.memory import DeviceMemory

pytestmark = pytest.mark.slow

UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_tiny_data(tmp_path / "sudoku-4x4", identifiers=5)


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.forecast.timing._SECONDS", 0.01)


def lines_of(out: str) -> dict[str, str]:
    """The lines of a forecast by their names."""
    _, *lines = out.splitlines()
    return {line[2:21].strip(): line[21:] for line in lines}


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def sizes(text: str) -> list[float]:
    """The sizes in a text, in bytes."""
    found = re.findall(r"([\d,.]+) (bytes|kB|MB|GB)", text)
    return [float(number.replace(",", "")) * UNITS[unit] for number, unit in found]


def tree(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All files and folders, with their times of change and contents."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("epochs=4", "min_eval_interval=2", "checkpoint_interval=5", "keep_checkpoints=1", "ema=true"),
        ("epochs=3", "checkpoint_every_eval=False", "max_steps=13", "micro_batch_size=3"),
    ],
)
def test_the_numbers_are_those_of_the_run_that_follows(
    changes: tuple[str, ...], data: Path, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    """Somebody plans a night by it, or a disk."""
    arguments = train_arguments(data, tmp_path / "run", *changes)
    before = tree(tmp_path)
    status, out, err = call_script(pretrain, *arguments, "forecast=true", "resume=auto")
    assert status == 0, err
    assert tree(tmp_path) == before
    found = lines_of(out)

    status, said, err = call_script(pretrain, *arguments)
    assert status == 0, err
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = max(record["_step"] if "_step" in record else record["step"] for record in history)
    evaluations = sum("eval/exact_accuracy" in record for record in history)
    assert numbers(found["training"])[-1] == steps
    assert numbers(found["evaluations"])[-1] == evaluations
    assert numbers(found["parameters"]) == [numbers(next(x for x in (said + err).splitlines() if "parameters" in x))[0]]
    folders = step_folders(tmp_path / "run")
    written = sum(file.stat().st_size for file in folders[0].glob("*.safetensors"))
    one, all_kept = sizes(found["checkpoint"])
    assert one == pytest.approx(written, rel=0.03)  # names and shapes are not counted
    kept = numbers(found["checkpoint"])[1]
    assert len(folders) <= kept <= len(folders) + ("keep_checkpoints=1" in changes)
    assert all_kept == pytest.approx(kept * one, rel=0.06)
    assert numbers(found["a training step"])[-1] == BATCH
    assert numbers(found["an evaluation"])[-2:] == [NUM_TEST, 3]


def test_an_evaluation_is_forecast_without_a_trace(data: Path, tmp_path: Path, call_script: Callable[..., Any]) -> None:
    status, _, err = call_script(pretrain, *train_arguments(data, tmp_path / "run", "epochs=1"))
    assert status == 0, err
    before = tree(tmp_path)
    for thinking, said in (((), [12, 3]), (("samples=4", "noise=1"), [12, 4, 3])):
        arguments = [f"checkpoint={tmp_path / 'run'}", "max_examples=12", "forecast=true", *thinking]
        status, out, err = call_script(evaluate, *arguments)
        assert status == 0, err
        assert numbers(lines_of(out)["the evaluation"])[1:] == said
        assert lines_of(out)["fits"].startswith("yes")
    assert tree(tmp_path) == before


def test_a_run_that_does_not_fit_is_told_what_to_change_and_timed_nevertheless(
    data: Path, tmp_path: Path, call_script: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published batch fits no Mac: the forecast must not fill its memory to say so."""
    arguments = train_arguments(data, tmp_path / "run", "forecast=true")
    _, out, _ = call_script(pretrain, *arguments)
    needed = sizes(lines_of(out)["memory"])[0]
    taken: list[int | None] = []
    make = forecast.TrainState

    def noted(*positional: Any, **options: Any) -> Any:
        taken.append(options["micro_batch_size"])
        return make(*positional, **options)

    monkeypatch.setattr(forecast, "TrainState", noted)
    monkeypatch.setattr(forecast, "device_memory", lambda ranks: DeviceMemory("pretended", int(needed)))  # 0.8 of it
    status, out, err = call_script(pretrain, *arguments)
    assert status == 0, err
    found = lines_of(out)
    assert found["fits"].startswith("no; micro_batch_size=auto")
    rows = numbers(found["fits"])[0]
    assert 1 <= rows < BATCH
    assert all(size is not None and size <= rows for size in taken)
    assert "whole run" in out
    _, out, _ = call_script(pretrain, *arguments, "micro_batch_size=auto")
    assert lines_of(out)["fits"].startswith("yes")

    monkeypatch.setattr(forecast, "device_memory", lambda ranks: DeviceMemory("pretended", 1000))
    status, out, err = call_script(pretrain, *arguments)
    assert status == 0, err
    assert lines_of(out)["fits"].startswith("no: a step needs")
