"""Weights & Biases: who decides how a run is recorded, and what a failed run looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

from common.errors import Interrupted
from tests.helpers.configs import pretrain_config, sizes
from utils.config import with_names
from utils.tracking import Tracker
from utils.train.history import History


class FakeRun:
    """Takes what a W&B run takes, and remembers it. `step` is the first that it takes, as in a run that goes on."""

    id = "abc123"

    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.exit_code: int | None = None

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def run_of(tracker: Tracker) -> FakeRun:
    run: Any = tracker.run
    assert isinstance(run, FakeRun)
    return run


@pytest.fixture
def wandb_init(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of wandb.init, which succeed unless `error` is set on the function."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> FakeRun:
        calls.append(options)
        if init.error is not None and options.get("mode") != "offline":  # type: ignore[attr-defined]
            raise init.error  # type: ignore[attr-defined]
        return FakeRun(init.step)  # type: ignore[attr-defined]

    init.error, init.step = None, 0  # type: ignore[attr-defined]
    monkeypatch.setattr(wandb, "init", init)
    return calls


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    (tmp_path / "run").mkdir()
    with History(tmp_path / "run") as history:
        yield history


def logged(history: History) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(history._file.name)).read_text().splitlines()]


def test_the_environment_decides_the_mode(
    wandb_init: list[dict[str, Any]], history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mode or timeout passed to wandb.init would override WANDB_MODE and WANDB_INIT_TIMEOUT."""
    config = with_names(pretrain_config(project_name="p", run_name="r"))
    with Tracker(config, None, history) as tracker:
        tracker.log({"train/lr": 0.1}, 3)
    (call,) = wandb_init
    assert call.get("mode") is None
    assert (call["id"], call["resume"]) == (None, None)
    assert not {"mode", "init_timeout"} & call["settings"].model_fields_set
    assert (call["project"], call["name"], call["config"]) == ("p", "r", config.model_dump())
    assert run_of(tracker).rows == [(3, {"train/lr": 0.1})]
    assert logged(history) == [{"step": 3, "train/lr": 0.1}]
    assert run_of(tracker).exit_code == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        wandb.errors.UsageError("No API key configured. Use `wandb login` to log in."),
        wandb.errors.CommError("Timed out\nConsider increasing the init_timeout setting"),
        wandb.errors.AuthenticationError("API key invalid"),
    ],
    ids=["no-login", "no-server", "refused"],
)
def test_what_can_t_be_online_goes_offline_in_one_line(
    wandb_init: list[dict[str, Any]], history: History, capsys: pytest.CaptureFixture[str], error: wandb.errors.Error
) -> None:
    """Days of training must not end at the first line for want of an account."""
    wandb.init.error = error  # type: ignore[attr-defined]
    Tracker(with_names(pretrain_config()), "abc123", history)
    assert [call.get("mode") for call in wandb_init] == [None, "offline"]
    assert [call["id"] for call in wandb_init] == ["abc123"] * 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(error).splitlines()[0].rstrip(".") in line
    assert "this run is recorded offline, `wandb sync` uploads it later" in line


@pytest.mark.usefixtures("wandb_init")
@pytest.mark.parametrize(("error", "exit_code"), [(RuntimeError("broken"), 1), (Interrupted(15), 143)])
def test_a_run_that_raises_is_marked_as_failed(history: History, error: Exception, exit_code: int) -> None:
    tracker = Tracker(with_names(pretrain_config()), None, history)
    with pytest.raises(type(error)), tracker:
        raise error
    assert run_of(tracker).exit_code == exit_code


def test_a_resumed_run_goes_on_as_the_same_and_repeats_nothing(
    wandb_init: list[dict[str, Any]], history: History
) -> None:
    """W&B would show two runs, or complain about every step that it had from the run before it was killed."""
    wandb.init.step = 8  # type: ignore[attr-defined]
    with Tracker(with_names(pretrain_config()), "abc123", history) as tracker:
        for step in (6, 7, 8):
            tracker.log({"train/lr": step / 10}, step)
        tracker.log_examples([{name: np.ones(16, np.int32) for name in ("inputs", "labels", "preds")}], sizes(), 7)
    assert (wandb_init[0]["id"], wandb_init[0]["resume"], tracker.run_id) == ("abc123", "allow", "abc123")
    assert run_of(tracker).rows == [(8, {"train/lr": 0.8})]
    assert [row["step"] for row in logged(history)] == [6, 7, 8]  # this file was cut at the checkpoint


def test_an_evaluation_after_the_last_logged_step_is_not_lost(
    wandb_init: list[dict[str, Any]], history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that is ended during its evaluation has logged the step's training metrics already."""
    wandb.init.step = 9  # type: ignore[attr-defined]
    with Tracker(with_names(pretrain_config()), "abc123", history, step=8) as tracker:
        tracker.log({"eval/accuracy": 0.5}, 8)
    assert run_of(tracker).rows == [(9, {"eval/accuracy": 0.5})]
    assert "which stay" not in capsys.readouterr().err


def test_a_run_taken_up_far_back_says_what_wandb_keeps(
    wandb_init: list[dict[str, Any]], history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another learning rate from step 4 on, W&B would silently show the old curve up to step 16."""
    wandb.init.step = 17  # type: ignore[attr-defined]
    with Tracker(with_names(pretrain_config()), "abc123", history, step=4):
        pass
    assert "W&B has values of this run up to step 16 already, which stay; metrics.jsonl" in capsys.readouterr().err


@pytest.mark.usefixtures("wandb_init")
def test_no_examples_log_no_picture(history: History) -> None:
    tracker = Tracker(with_names(pretrain_config()), None, history)
    tracker.log_examples([], sizes(), 1)
    assert not run_of(tracker).rows


def test_disabled_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real package with WANDB_MODE=disabled, as in the README's first command: no folder, no process, no words."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    sample = {name: np.ones(16, np.int32) for name in ("inputs", "labels", "preds")}
    (tmp_path / "run").mkdir()
    with History(tmp_path / "run") as history, Tracker(with_names(pretrain_config()), None, history) as tracker:
        tracker.log({"train/lr": 0.1}, 1)
        tracker.log_examples([sample], sizes(), 1)
        tracker.log_code(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
