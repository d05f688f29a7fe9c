"""Shared by all tests. The CPU is prepared here, before any test module imports mlx."""

from __future__ import annotations

import utils.linux_cpu  # noqa: F401

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

# float32 is to mean float32: on an M5 and on NVIDIA, MLX multiplies with ten bits of mantissa otherwise.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

# A shell without job control has Ctrl-C ignored in what it starts with `&`, and so in all processes of these tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Hydra makes the root logger talkative, on the stdout of the test that called it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """A `main` called here has Hydra raise its errors; the processes of later tests would inherit that."""
    with mock.patch.dict(os.environ):
        yield


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
