"""Ctrl-C while a script is still importing: it ends at once, without a page of traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [
    ["pretrain.py"],
    ["evaluate.py"],
    *([f"dataset/{path.name}"] for path in sorted((ROOT / "dataset").glob("build_*_dataset.py"))),
    *(["-m", f"utils.{name}"] for name in ("arc", "bench", "export")),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda words: words[-1])
def test_an_interrupted_import_prints_nothing(program: list[str], tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, *program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "Traceback" not in err
    assert process.returncode == -signal.SIGINT


def test_a_started_program_hears_it() -> None:
    """It cleans up, and says that it was interrupted."""
    code = (
        "import common.quiet_imports, time\nfrom common.errors import one_line\n"
        "@one_line\ndef main():\n    try:\n        print('begun', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        print('cleaned up')\nmain()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "cleaned up\n", "\ninterrupted\n")
