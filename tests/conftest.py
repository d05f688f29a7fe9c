"""Shared by all tests. The CPU is prepared here, before any test module imports mlx."""

from __future__ import annotations

import utils.cpu  # noqa: F401

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Hydra, where a test calls pretrain.py, makes all logging go to the stdout of that test, which is closed soon."""
    before, level = logging.root.handlers[:], logging.root.level
    yield
    for handler in set(logging.root.handlers) - set(before):
        logging.root.removeHandler(handler)
    logging.root.setLevel(level)


@pytest.fixture
def call_script(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call a script's `main` in this process with the given arguments; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def call(script: ModuleType, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
        capsys.readouterr()
        status = 0
        try:
            script.main()
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
        out, err = capsys.readouterr()
        return status, out, err

    return call
