"""The hub's client, whose own account of what it tries is kept from the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SOURCE = """
import time
time.sleep = lambda seconds: None
from common.errors import UserError
from dataset.csv_puzzles import resolve_source
try:
    resolve_source("someone/puzzles", "train.csv")
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_builder_without_a_network_prints_nothing_of_its_retries(tmp_path: Path) -> None:
    """The one line that says what to do would stand below twelve that don't."""

    def build(**more: str) -> subprocess.CompletedProcess[str]:
        home = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "*", "HF_HUB_OFFLINE": "0"}
        env = {name: value for name, value in os.environ.items() if name != "HF_HUB_VERBOSITY"} | home | more
        return subprocess.run(
            [sys.executable, "-c", SOURCE], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True
        )

    done = build()
    assert "the connection to http://127.0.0.1:9 is refused" in done.stdout
    assert done.stderr == ""
    assert "Retrying" in build(HF_HUB_VERBOSITY="warning").stderr  # whoever wants to see them
