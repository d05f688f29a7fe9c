"""Fresh interpreters: utils.linux_cpu does its work when it is first imported, so its tests need one each."""

from __future__ import annotations

from utils.linux_cpu.blas import has_mlx_cpu_wheel

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from models.kernels.cpu import native

ROOT = Path(__file__).parents[2]
SILENT = ""

needs_mlx_cpu = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not has_mlx_cpu_wheel(), reason="about MLX's build for Linux CPUs"
)
needs_wheel = pytest.mark.skipif(find_spec("scipy_openblas32") is None, reason="needs scipy-openblas32")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="without g++ MLX compiles no kernels")
needs_native = pytest.mark.skipif(
    native() is None, reason="about the loops of models/kernels/native, which are not built"
)


def run(code: str, **environment: str) -> tuple[str, str]:
    """Run `code` from the repository root in an environment without this test run's own settings; stdout and stderr."""
    outer = ("HRM_", "OPENBLAS_", "OMP_", "MLX_", "TMPDIR", "PYTHONPATH")
    env = {key: value for key, value in os.environ.items() if not key.startswith(outer)}
    env |= {"HRM_NATIVE": "off"} | environment  # in a temporary folder the loops would be built anew
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()
