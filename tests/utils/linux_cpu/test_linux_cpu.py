"""utils/linux_cpu does its work when it is first imported, so every test here runs a fresh interpreter."""

from __future__ import annotations

from utils.linux_cpu import blas as cpu_blas
from utils.linux_cpu import kernels as cpu_kernels

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from utils import linux_cpu as cpu

ROOT = Path(__file__).parents[3]
SILENT = ""

needs_mlx_cpu = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not cpu._has_mlx_cpu_wheel(), reason="about MLX's build for Linux CPUs"
)
needs_wheel = pytest.mark.skipif(find_spec("scipy_openblas32") is None, reason="needs scipy-openblas32")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="without g++ MLX compiles no kernels")

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


def run(code: str, **environment: str) -> tuple[str, str]:
    """Run `code` from the repository root in an environment without this test run's own settings; stdout and stderr."""
    outer = ("HRM_", "OPENBLAS_", "OMP_", "MLX_", "TMPDIR", "PYTHONPATH")
    env = {key: value for key, value in os.environ.items() if not key.startswith(outer)} | environment
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


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
def test_wheel_makes_matmul_fast_and_right():
    """Training on a machine without root rights would be 20 to 50 times slower, or wrong."""
    # One thread, because the other cores may be busy with other tests.
    one = {"OPENBLAS_NUM_THREADS": "1"}
    fast, slow = (json.loads(run(MATMUL_SPEED, HRM_BLAS=choice, **one)[0]) for choice in ("wheel", "off"))
    assert (fast["blas"], slow["blas"]) == ("scipy-openblas32", "built in")
    assert slow["seconds"] / fast["seconds"] >= 10
    assert fast["error"] < 1e-3  # sums of 384 products of size 1 in float32


@needs_mlx_cpu
@needs_wheel
def test_forwarded_lapack_agrees_with_mlx():
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
def test_every_name_leads_to_the_wheel():
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
    assert run(code, HRM_BLAS="wheel") == (str(len(cpu_blas.SYMBOLS)), SILENT)


@needs_mlx_cpu
def test_symbols_cover_what_mlx_imports():
    """A later MLX may call a BLAS function that isn't forwarded; it would run at the speed of the reference."""
    spec = find_spec("mlx")
    assert spec is not None
    libraries = [Path(place, "lib", "libmlx.so") for place in spec.submodule_search_locations or ()]
    names = b"".join(path.read_bytes() for path in libraries if path.exists())
    pattern = rb"\0(cblas_[a-z0-9_]+|[sdcz](?:ge|gt|he|or|po|sp|sy|tp|tr|un)[a-z0-9]{2,4}_)(?=\0)"
    imported = {name.decode() for name in re.findall(pattern, names)}
    assert imported == set(cpu_blas.SYMBOLS)


@needs_mlx_cpu
def test_system_library_comes_first(tmp_path):
    """Who has installed a BLAS that suits the machine expects it to be used rather than the generic wheel."""
    machine = cpu_blas.ELF_MACHINES[os.uname().machine]
    (tmp_path / "libopenblas.so.0").write_bytes(cpu_blas._absolute_symbols_elf({"cblas_sgemm": 0x1000}, machine))
    code = "import utils.linux_cpu; print(utils.linux_cpu.blas_name)"
    assert run(code, LD_LIBRARY_PATH=str(tmp_path)) == ("libopenblas.so.0", SILENT)


@needs_mlx_cpu
def test_without_openblas_one_line_and_it_works():
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
@needs_wheel
def test_a_broken_library_does_not_stop_the_run():
    """A damaged OpenBLAS would end every command with a traceback."""
    code = "import utils.linux_cpu.blas as b; b._absolute_symbols_elf = lambda *_: b'junk'; import utils.linux_cpu; "
    code += "print(utils.linux_cpu.blas_name)"
    out, err = run(code, HRM_BLAS="wheel")
    assert out == "built in"
    assert "could not be loaded" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("installed", ["mlx_cuda_13", "mlx_cuda_13 mlx_cpu"])
def test_nothing_is_done_with_cuda(tmp_path, installed):
    """On a GPU machine a second BLAS or a changed TMPDIR would be a surprise without a use."""
    (tmp_path / "mlx").mkdir()
    for name in installed.split():
        (tmp_path / f"{name}-0.32.4.dist-info").mkdir()
    assert_nothing_done("", PYTHONPATH=str(tmp_path))


def test_nothing_is_done_on_macos():
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
def test_imported_too_late_says_so():
    """An entry script that imports mlx first would be slow for no visible reason."""
    out, err = run("import mlx.core, utils.linux_cpu; print(utils.linux_cpu.blas_name)")
    assert out == "built in"
    assert len(err.splitlines()) == 1
    assert "move `import utils.linux_cpu` before the import of mlx" in err


@needs_mlx_cpu
@needs_wheel
def test_threads_are_this_process_s_share(tmp_path):
    """Two ranks on one machine, or a process held to some cores, would have more threads than cores, and be slower."""
    code = """
import os, sys
if sys.argv[1:]: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import utils.linux_cpu, ctypes, scipy_openblas32
from pathlib import Path
wheel = ctypes.CDLL(str(next(Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas*.so"))))
print(wheel.scipy_openblas_get_num_threads())
"""
    cores = len(os.sched_getaffinity(0))
    local, remote = tmp_path / "local.json", tmp_path / "remote.json"
    local.write_text('[["127.0.0.1:5000"], ["127.0.0.1:5001"]]')
    remote.write_text('[["10.0.0.1:5000"], ["10.0.0.2:5000"]]')
    alone = int(run(code, HRM_BLAS="wheel")[0])
    assert alone <= cores
    ranks = {"HRM_BLAS": "wheel", "MLX_RANK": "1"}
    assert int(run(code, MLX_HOSTFILE=str(local), **ranks)[0]) == max(alone // 2, 1)
    assert int(run(code, MLX_HOSTFILE=str(remote), **ranks)[0]) == alone
    assert int(run(code, MLX_HOSTFILE=str(tmp_path / "none.json"), **ranks)[0]) == alone
    assert int(run(code.replace("if sys.argv[1:]: ", ""), HRM_BLAS="wheel")[0]) == 1
    wanted = max(cores - 1, 1)
    assert int(run(code, MLX_HOSTFILE=str(local), OPENBLAS_NUM_THREADS=str(wanted), **ranks)[0]) == wanted


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
def test_compiled_functions_run_without_a_compiler(tmp_path):
    """A machine without g++ could not take a single training step."""
    (tmp_path / "bin").mkdir()
    out, err = run(COMPILED, PATH=str(tmp_path / "bin"), TMPDIR=str(tmp_path), HRM_BLAS="off")
    assert out.splitlines()[0] == COMPILED_RESULT
    assert err == SILENT
    assert not list(tmp_path.rglob("*.so"))  # it did run without one


@needs_mlx_cpu
@needs_compiler
@pytest.mark.parametrize("obstacle", ["a file", "another user's"])
def test_kernels_go_elsewhere_when_the_folder_is_not_ours(tmp_path, obstacle):
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
def test_uncompiled_when_no_folder_will_do(tmp_path):
    """A read-only machine should train slowly, and say why, rather than not at all."""
    for name in ("mlx", f"mlx-{os.getuid()}", "cache"):
        (tmp_path / name).touch()
    out, err = run(COMPILED, TMPDIR=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"), HRM_BLAS="off")
    assert out.splitlines() == [COMPILED_RESULT, f"{tmp_path} 1"]
    assert len(err.splitlines()) == 1
    assert "set TMPDIR" in err


@needs_mlx_cpu
@needs_compiler
def test_the_usual_folder_is_kept(tmp_path):
    """Kernels are compiled once for all runs of a user; a folder for each process would cost that at every start."""
    out, _ = run(COMPILED, TMPDIR=str(tmp_path), HRM_BLAS="off")
    assert out.splitlines() == [COMPILED_RESULT, f"{tmp_path} None"]
    assert len(list((tmp_path / "mlx").rglob("*.so"))) == 1


@needs_mlx_cpu
@needs_compiler
def test_kernels_find_their_headers_precompiled(tmp_path):
    """The first step of a model would take half a minute, most of it for reading the same headers 80 times."""
    run(COMPILED, TMPDIR=str(tmp_path), HRM_BLAS="off")
    end = time.monotonic() + 30
    while not (headers := list(tmp_path.rglob("*.gch"))):  # written beside the run
        assert time.monotonic() < end
        time.sleep(0.05)
    (source,) = tmp_path.rglob("*.cpp")
    assert headers[0].relative_to(source.parent) == Path(cpu_kernels._HEADER + ".gch")
    include = Path(next(iter(find_spec("mlx").submodule_search_locations)), "include")
    command = ["g++", "-std=c++17", "-O3", "-Wall", "-fPIC", "-shared", f"-I{include}", "-H", source, "-o", "/dev/null"]
    read = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert f"! {headers[0]}" in read  # g++ marks a precompiled header that it takes with an exclamation mark


TRAINING_STEP = """
import threading
from tests.helpers.configs import pretrain_config, random_batch, train_state
import mlx.core as mx

def losses():
    state = train_state(pretrain_config({}))
    found = [state.train_step(random_batch(i))[0]["loss"] for i in range(3)]
    mx.eval(found, state.arrays)
    print([float(loss) for loss in found])

losses()
thread = threading.Thread(target=losses)
thread.start()
thread.join()
"""


@needs_mlx_cpu
def test_any_number_of_streams_gives_the_same_in_any_thread():
    """A notebook or a server works in threads; a machine with one core takes another way through the model."""
    code = f"import utils.linux_cpu\n{TRAINING_STEP}"
    found = []
    for streams in ("1", "2", "3"):
        out, err = run(code, HRM_STREAMS=streams, MLX_DISABLE_COMPILE="1")
        assert err == SILENT
        first, second = map(json.loads, out.splitlines())
        assert first == second
        found.append(first)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("streams", ["0", "-1", "two", "2.5", "²"])
def test_a_wrong_number_of_streams_is_told_in_a_line(streams):
    """It would end in a traceback, on a GPU too."""
    out, err = run("import utils.linux_cpu, os; print(os.environ['HRM_STREAMS'])", HRM_STREAMS=streams)
    assert out == "1"
    assert f"HRM_STREAMS={streams} is no number of streams, expected 1 or more: taken as 1" in err.splitlines()[0]


@needs_mlx_cpu
@pytest.mark.parametrize("gibibytes", [3, 4.2, 6.2])
def test_a_limit_on_addresses_leaves_room_for_the_rest(gibibytes):
    """Batch systems set one; addresses that were set aside would be missing for libraries and threads."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({int(gibibytes * 2**30)},) * 2); "
    out, _ = run(limit + "import utils.linux_cpu, pretrain; print('fits')", HRM_BLAS="off")
    assert out == "fits"


@pytest.mark.parametrize("script", ["pretrain", "evaluate"])
def test_scripts_prepare_the_cpu_before_they_load_mlx(script):
    """A sorted or pruned import would make every run on a Linux CPU many times slower, without an error."""
    out, err = run(f"import sys, {script}; names = list(sys.modules); print(names.index('utils.linux_cpu'))")
    position = int(out)
    out, _ = run(f"import sys, {script}; names = list(sys.modules); print(names.index('mlx.core'))")
    assert position < int(out)
    assert "too late" not in err
