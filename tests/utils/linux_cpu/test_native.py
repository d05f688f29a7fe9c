"""The loops of models/kernels/native: built once, and done without, with one line, where they can't be."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.fresh_python import SILENT, needs_compiler, needs_mlx_cpu, run

pytestmark = [pytest.mark.slow, needs_mlx_cpu, needs_compiler]

USED = """
import utils.linux_cpu, os
import mlx.core as mx
from models import kernels
print(kernels.cpu.native() is not None, kernels.silu(mx.array([0.0, 100.0])).tolist())
"""
RESULT = "[0.0, 100.0]"


def test_the_loops_are_built_and_only_once() -> None:
    """Unbuilt, nobody would notice but by the clock; and a build takes ten seconds of every command's start."""
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        pytest.skip("Python's headers are not installed, so that nothing can be built; the next test is about that")
    path = "print(os.environ['HRM_NATIVE'])"
    out, _ = run(USED + path, HRM_NATIVE="")
    used, built = out.splitlines()
    assert used == f"True {RESULT}"
    before = Path(built).stat().st_mtime_ns
    assert run(USED + path, HRM_NATIVE="") == (out, SILENT)
    assert Path(built).stat().st_mtime_ns == before


def test_without_pythons_headers_one_line_and_it_works() -> None:
    """Debian's Python comes without them: training there would fail, or be slow without anybody knowing why."""
    hide = "import sysconfig; sysconfig.get_paths = lambda: {'include': '/nowhere'}"
    out, err = run(hide + USED, HRM_NATIVE="")
    assert out == f"False {RESULT}"
    assert len(err.splitlines()) == 1
    assert "apt install python3-dev" in err
    for off in ("off", "/nowhere/hrm_native.so"):
        assert run(USED, HRM_NATIVE=off) == (out, SILENT)


def test_a_compiler_that_fails_is_asked_once(tmp_path: Path) -> None:
    """A machine whose compiler is too old would try again at every start, and print a page of C++."""
    calls, fake = tmp_path / "calls", tmp_path / "bin" / "g++"
    fake.parent.mkdir()
    fake.write_text(
        f"#!/bin/sh\necho called >>'{calls}'\necho \"g++: error: unrecognised option '-std=c++20'\" >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    settings = {"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path), "HRM_NATIVE": ""}
    assert shutil.which("g++", path=settings["PATH"]) == str(fake)
    # without mx.compile, which would call it too
    code = USED.replace("import utils", "import os; os.environ['MLX_DISABLE_COMPILE'] = '1'\nimport utils", 1)
    out, err = run(code, **settings)
    first, told = err.splitlines()
    assert out == f"False {RESULT}"
    assert "compiling" in first
    assert "unrecognised option '-std=c++20'" in told
    asked = calls.read_text()
    assert run(code, **settings) == (out, told)
    assert calls.read_text().count("called") <= asked.count("called") + 1  # the headers of mx.compile's kernels
