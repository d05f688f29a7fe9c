"""utils.linux_cpu does its work when it is first imported: before MLX is loaded, and only where it is of use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.fresh_python import SILENT, needs_mlx_cpu, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("installed", ["mlx_cuda_13", "mlx_cuda_13 mlx_cpu"])
def test_nothing_is_done_with_cuda(tmp_path: Path, installed: str) -> None:
    """On a GPU machine a second BLAS or a changed TMPDIR would be a surprise without a use."""
    (tmp_path / "mlx").mkdir()
    for name in installed.split():
        (tmp_path / f"{name}-0.32.4.dist-info").mkdir()
    assert_nothing_done("", PYTHONPATH=str(tmp_path))


def test_nothing_is_done_on_macos() -> None:
    """On macOS neither Linux's library names nor memfd_create exist."""
    assert_nothing_done("import sys, pathlib, tempfile; sys.platform = 'darwin'; ")


def assert_nothing_done(prelude: str, **environment: str) -> None:
    code = f"""{prelude}
import ctypes, os
before = dict(os.environ)
def load(*args, **kwargs): raise AssertionError(args)
ctypes.CDLL = os.memfd_create = load
import utils.linux_cpu
assert dict(os.environ) == before
print(utils.linux_cpu.blas_name)
"""
    assert run(code, **environment) == ("built in", SILENT)


@needs_mlx_cpu
def test_imported_too_late_says_so() -> None:
    """An entry script that imports mlx first would be slow for no visible reason."""
    out, err = run("import mlx.core, utils.linux_cpu; print(utils.linux_cpu.blas_name)")
    assert out == "built in"
    assert len(err.splitlines()) == 1
    assert "move `import utils.linux_cpu` above the first import of mlx" in err


@pytest.mark.parametrize("script", ["pretrain", "evaluate"])
def test_scripts_prepare_the_cpu_before_they_load_mlx(script: str) -> None:
    """A sorted or pruned import would make every run on a Linux CPU many times slower, without an error."""
    out, err = run(f"import sys, {script}; names = list(sys.modules); print(names.index('utils.linux_cpu'))")
    position = int(out)
    out, _ = run(f"import sys, {script}; names = list(sys.modules); print(names.index('mlx.core'))")
    assert position < int(out)
    assert "too late" not in err
