"""Weights & Biases: who decides how a run is recorded, and what a failed run looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

from tests.configs import pretrain_config
from utils.config import with_names
from utils.tracking import Tracker


class FakeRun:
    """Takes what a W&B run takes, and remembers it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.exit_code: int | None = None

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb_init(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls of wandb.init, which succeed unless `error` is set on the function."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> FakeRun:
        calls.append(options)
        if init.error is not None and options.get("mode") != "offline":  # type: ignore[attr-defined]
            raise init.error  # type: ignore[attr-defined]
        return FakeRun()

    init.error = None  # type: ignore[attr-defined]
    monkeypatch.setattr(wandb, "init", init)
    return calls


def test_the_environment_decides_the_mode(wandb_init: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """A mode or timeout passed to wandb.init would override WANDB_MODE and WANDB_INIT_TIMEOUT."""
    config = with_names(pretrain_config(project_name="p", run_name="r"))
    with Tracker(config) as tracker:
        tracker.log({"train/lr": 0.1}, 3)
    (call,) = wandb_init
    assert call.get("mode") is None
    assert not {"mode", "init_timeout"} & call["settings"].model_fields_set
    assert (call["project"], call["name"], call["config"]) == ("p", "r", config.model_dump())
    assert isinstance(tracker.run, FakeRun)
    assert tracker.run.rows == [(3, {"train/lr": 0.1})]
    assert tracker.run.exit_code == 0
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
    wandb_init: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], error: wandb.errors.Error
) -> None:
    """Days of training must not end at the first line for want of an account."""
    wandb.init.error = error  # type: ignore[attr-defined]
    Tracker(with_names(pretrain_config()))
    assert [call.get("mode") for call in wandb_init] == [None, "offline"]
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert str(error).splitlines()[0].rstrip(".") in line
    assert "this run is recorded offline, `wandb sync` uploads it later" in line


@pytest.mark.usefixtures("wandb_init")
def test_a_run_that_raises_is_marked_as_failed() -> None:
    tracker = Tracker(with_names(pretrain_config()))
    with pytest.raises(RuntimeError, match="broken"), tracker:
        raise RuntimeError("broken")
    assert isinstance(tracker.run, FakeRun)
    assert tracker.run.exit_code == 1


@pytest.mark.usefixtures("wandb_init")
def test_no_examples_log_no_picture() -> None:
    tracker = Tracker(with_names(pretrain_config()))
    tracker.log_examples([], 6, 1)
    assert isinstance(tracker.run, FakeRun)
    assert not tracker.run.rows


def test_disabled_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real package with WANDB_MODE=disabled, as in the README's first command: no folder, no process, no words."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    sample = {name: np.ones(16, np.int32) for name in ("inputs", "labels", "preds")}
    (tmp_path / "run").mkdir()
    with Tracker(with_names(pretrain_config())) as tracker:
        tracker.log({"train/lr": 0.1}, 1)
        tracker.log_examples([sample], 6, 1)
        tracker.log_code(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
