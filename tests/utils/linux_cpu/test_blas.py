"""A BLAS that is fast, right, and of the user's choice; without one everything works all the same."""

from __future__ import annotations

from utils.linux_cpu import blas

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.fresh_python import SILENT, needs_mlx_cpu, needs_wheel, run

pytestmark = pytest.mark.slow

# Hides every OpenBLAS of the machine from the module that is imported next.
HIDE_OPENBLAS = """
import ctypes, importlib.util
real_load, real_find = ctypes.CDLL, importlib.util.find_spec
def load(name, *args, **kwargs):
    if name and "openblas" in str(name):
        raise OSError(name)
    return real_load(name, *args, **kwargs)
ctypes.CDLL = load
importlib.util.find_spec = lambda name: None if name == "scipy_openblas32" else real_find(name)
"""


MATMUL_SPEED = """
import json, time
import utils.linux_cpu
import mlx.core as mx, numpy as np
rng = np.random.default_rng(0)
a, b = (rng.standard_normal((384, 384)).astype(np.float32) for _ in range(2))
x, y = mx.array(a), mx.array(b)
error = float(np.abs(np.array(x @ y) - a.astype(np.float64) @ b).max())
best, end = 1e9, time.perf_counter() + 0.5
while time.perf_counter() < end:
    start = time.perf_counter()
    mx.eval(x @ y)
    best = min(best, time.perf_counter() - start)
print(json.dumps({"blas": utils.linux_cpu.blas_name, "error": error, "seconds": best}))
"""


@needs_mlx_cpu
@needs_wheel
def test_wheel_makes_matmul_fast_and_right() -> None:
    """Training on a machine without root rights would be 20 to 50 times slower, or wrong."""
    # One thread, because the other cores may be busy with other tests.
    one = {"OPENBLAS_NUM_THREADS": "1"}
    fast, slow = (json.loads(run(MATMUL_SPEED, HRM_BLAS=choice, **one)[0]) for choice in ("wheel", "off"))
    assert (fast["blas"], slow["blas"]) == ("scipy-openblas32", "built in")
    assert slow["seconds"] / fast["seconds"] >= 10
    assert fast["error"] < 1e-3  # sums of 384 products of size 1 in float32


@needs_mlx_cpu
@needs_wheel
def test_forwarded_lapack_agrees_with_mlx() -> None:
    """A different calling convention behind one of the names would give wrong numbers or a crash in mx.linalg."""
    code = """
import utils.linux_cpu
import mlx.core as mx, numpy as np
rng = np.random.default_rng(0)
m = rng.standard_normal((20, 20)).astype(np.float32)
a, spd, eye = mx.array(m), mx.array(m @ m.T + 20 * np.eye(20, dtype=np.float32)), np.eye(20)
la, cpu = mx.linalg, mx.cpu
close = lambda x, y: np.testing.assert_allclose(np.array(x), np.array(y), atol=2e-3)
close(la.inv(a, stream=cpu) @ a, eye)
close(la.inv(spd, stream=cpu) @ spd, eye)
low = la.cholesky(spd, stream=cpu)
close(low @ low.T, spd)
close(la.tri_inv(low, stream=cpu) @ low, eye)
q, r = la.qr(a, stream=cpu)
close(q @ r, a)
u, s, vt = la.svd(a, stream=cpu)
close((u * s) @ vt, a)
values, vectors = la.eigh(spd, stream=cpu)
close((vectors * values) @ vectors.T, spd)
close(np.sort(np.array(la.eigvals(spd, stream=cpu)).real), np.sort(np.array(values)))
print(utils.linux_cpu.blas_name)
"""
    assert run(code, HRM_BLAS="wheel") == ("scipy-openblas32", SILENT)


@needs_mlx_cpu
@needs_wheel
def test_every_name_leads_to_the_wheel() -> None:
    """A name that is looked up and not found leaves that operation on the reference library, unnoticed."""
    code = """
import ctypes, sys
import utils.linux_cpu, utils.linux_cpu.blas
from pathlib import Path
import scipy_openblas32
wheel = ctypes.CDLL(str(next(Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas*.so"))))
everywhere = ctypes.CDLL(None)
address = lambda library, name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value
for name in utils.linux_cpu.blas.SYMBOLS:
    assert address(everywhere, name) == address(wheel, "scipy_" + name), name
print(len(utils.linux_cpu.blas.SYMBOLS))
"""
    assert run(code, HRM_BLAS="wheel") == (str(len(blas.SYMBOLS)), SILENT)


@needs_mlx_cpu
def test_symbols_cover_what_mlx_imports() -> None:
    """A later MLX may call a BLAS function that isn't forwarded; it would run at the speed of the reference."""
    spec = find_spec("mlx")
    assert spec is not None
    libraries = [Path(place, "lib", "libmlx.so") for place in spec.submodule_search_locations or ()]
    names = b"".join(path.read_bytes() for path in libraries if path.exists())
    pattern = rb"\0(cblas_[a-z0-9_]+|[sdcz](?:ge|gt|he|or|po|sp|sy|tp|tr|un)[a-z0-9]{2,4}_)(?=\0)"
    imported = {name.decode() for name in re.findall(pattern, names)}
    assert imported == set(blas.SYMBOLS)


@needs_mlx_cpu
def test_system_library_comes_first(tmp_path: Path) -> None:
    """Who has installed a BLAS that suits the machine expects it to be used rather than the generic wheel."""
    machine = blas.ELF_MACHINES[os.uname().machine]
    (tmp_path / "libopenblas.so.0").write_bytes(blas._absolute_symbols_elf({"cblas_sgemm": 0x1000}, machine))
    code = "import utils.linux_cpu; print(utils.linux_cpu.blas_name)"
    assert run(code, LD_LIBRARY_PATH=str(tmp_path)) == ("libopenblas.so.0", SILENT)


@needs_mlx_cpu
def test_without_openblas_one_line_and_it_works() -> None:
    """A bare machine would either fail or be slow without anybody knowing what to do."""
    work = "import utils.linux_cpu, mlx.core as mx; "
    work += "print(utils.linux_cpu.blas_name, (mx.ones((1, 2)) @ mx.ones((2, 1))).item())"
    code = HIDE_OPENBLAS + work
    out, err = run(code)
    assert out == "built in 2.0"
    assert len(err.splitlines()) == 1
    assert "pip install scipy-openblas32" in err
    assert "apt install libopenblas0-pthread" in err
    assert run(code, MLX_RANK="0")[1] == err
    assert run(code, MLX_RANK="1") == (out, SILENT)  # two ranks, one line
    assert run(code, HRM_BLAS="off") == (out, SILENT)


@needs_mlx_cpu
def test_a_broken_library_does_not_stop_the_run(tmp_path: Path) -> None:
    """A damaged OpenBLAS would end every command with a traceback."""
    library = tmp_path / "scipy_openblas32" / "lib" / "libscipy_openblas.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"junk")
    (tmp_path / "scipy_openblas32" / "__init__.py").touch()
    code = "import utils.linux_cpu; print(utils.linux_cpu.blas_name)"
    out, err = run(code, HRM_BLAS="wheel", PYTHONPATH=str(tmp_path))
    assert out == "built in"
    assert "could not be loaded" in err
    assert len(err.splitlines()) == 1
