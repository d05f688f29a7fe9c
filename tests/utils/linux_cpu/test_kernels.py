"""Kernels of mx.compile: in a folder of ours, quickly compiled, and done without where that can't be."""

from __future__ import annotations

from utils.linux_cpu import kernels

import os
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.fresh_python import SILENT, needs_compiler, needs_mlx_cpu, run

pytestmark = pytest.mark.slow

COMPILED = """
import os
import utils.linux_cpu
import mlx.core as mx
result = mx.compile(lambda x: mx.square(x) * 3 + x - 1.25)(mx.array([0.0, 1.0, 2.0]))
print(result.tolist())
print(os.environ.get("TMPDIR"), os.environ.get("MLX_DISABLE_COMPILE"))
"""
COMPILED_RESULT = "[-1.25, 2.75, 12.75]"


@needs_mlx_cpu
def test_compiled_functions_run_without_a_compiler(tmp_path: Path) -> None:
    """A machine without g++ could not take a single training step."""
    (tmp_path / "bin").mkdir()
    out, err = run(COMPILED, PATH=str(tmp_path / "bin"), TMPDIR=str(tmp_path), HRM_BLAS="off")
    assert out.splitlines()[0] == COMPILED_RESULT
    assert err == SILENT
    assert not list(tmp_path.rglob("*.so"))  # it did run without one


@needs_mlx_cpu
@needs_compiler
@pytest.mark.parametrize("obstacle", ["a file", "another user's"])
def test_kernels_go_elsewhere_when_the_folder_is_not_ours(tmp_path: Path, obstacle: str) -> None:
    """The second person to use MLX on a shared machine would get a compiler's error message instead of training."""
    if obstacle == "a file":
        (tmp_path / "mlx").touch()
    elif os.getuid() == 0:
        (tmp_path / "mlx").mkdir()
        os.chown(tmp_path / "mlx", 65534, 65534)
    else:
        pytest.skip("only root can make another user's folder")
    out, err = run(COMPILED, TMPDIR=str(tmp_path), HRM_BLAS="off")
    own = tmp_path / f"mlx-{os.getuid()}"
    assert out.splitlines() == [COMPILED_RESULT, f"{own} None"]
    assert err == SILENT
    assert list(own.rglob("*.so"))
    assert own.stat().st_mode & 0o022 == 0  # nobody else can put a library there


@needs_mlx_cpu
@needs_compiler
def test_uncompiled_when_no_folder_will_do(tmp_path: Path) -> None:
    """A read-only machine should train slowly, and say why, rather than not at all."""
    for name in ("mlx", f"mlx-{os.getuid()}", "cache"):
        (tmp_path / name).touch()
    out, err = run(COMPILED, TMPDIR=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"), HRM_BLAS="off")
    assert out.splitlines() == [COMPILED_RESULT, f"{tmp_path} 1"]
    assert len(err.splitlines()) == 1
    assert "set TMPDIR" in err


@needs_mlx_cpu
@needs_compiler
def test_uncompiled_without_any_temporary_folder() -> None:
    """The same where not even Python finds one."""
    code = f"""
import tempfile
def none(): raise FileNotFoundError("no usable temporary directory found")
tempfile.gettempdir = none
{COMPILED}"""
    out, err = run(code, HRM_BLAS="off")
    assert out.splitlines() == [COMPILED_RESULT, "None 1"]
    assert len(err.splitlines()) == 1
    assert "no usable temporary directory found" in err


@needs_mlx_cpu
@needs_compiler
def test_the_usual_folder_is_kept(tmp_path: Path) -> None:
    """Kernels are compiled once for all runs of a user; a folder for each process would cost that at every start."""
    out, _ = run(COMPILED, TMPDIR=str(tmp_path), HRM_BLAS="off")
    assert out.splitlines() == [COMPILED_RESULT, f"{tmp_path} None"]
    assert len(list((tmp_path / "mlx").rglob("*.so"))) == 1


@needs_mlx_cpu
@needs_compiler
def test_kernels_find_their_headers_precompiled(tmp_path: Path) -> None:
    """The first step of a model would take half a minute, most of it for reading the same headers 50 times."""
    run(COMPILED, TMPDIR=str(tmp_path), HRM_BLAS="off")
    end = time.monotonic() + 300
    while not (headers := list(tmp_path.rglob("*.gch"))):  # written beside the run
        assert time.monotonic() < end
        time.sleep(0.05)
    (source,) = tmp_path.rglob("*.cpp")
    assert headers[0].relative_to(source.parent) == Path(kernels._HEADER + ".gch")
    spec = find_spec("mlx")
    assert spec is not None
    include = Path((spec.submodule_search_locations or [""])[0], "include")
    options = ["-std=c++17", "-O3", "-Wall", "-fPIC", "-shared", f"-I{include}", "-H"]
    command = ["g++", *options, str(source), "-o", "/dev/null"]
    read = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert f"! {headers[0]}" in read  # g++ marks a precompiled header that it takes with an exclamation mark
