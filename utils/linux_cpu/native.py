"""The loops of `models/kernels/native`, built for this machine. Called by `utils.linux_cpu`, before MLX is loaded.

They are compiled once, in some ten seconds, with g++, for the processor at hand, against the headers of MLX and of
nanobind, MLX's own binding of C++ to Python, and kept in the folder of MLX's kernels. HRM_NATIVE then names the result,
and `models.kernels` uses it. Where something that this takes is missing, one line says what, and plain MLX does the
work.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

_SOURCES = Path(__file__).resolve().parents[2] / "models" / "kernels" / "native"
_FILES = ("loops.h", "loops.cpp", "mlx_call.cpp")
_EXTENSION = "hrm_native.so"
_TIMEOUT = 300  # seconds, for each command of a build
_FAILED = "failed.txt"  # in place of the extension, with the reason
_LOOPS = ["-O3", "-fvisibility=hidden", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
_WIDE = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
_BINDING = ["-O2", "-fvisibility=hidden", "-fno-strict-aliasing", "-DNDEBUG", "-DNB_DOMAIN=mlx"]
# What a build must be able to do: MLX takes its arrays only from a binding of its own version.
_TRIAL = """
import sys, utils.linux_cpu, mlx.core as mx
from models import kernels
x, weight = mx.random.normal((1, 40, 16)), mx.random.normal((48, 16))
found = kernels.attention(x, weight, 2, 10000.0)
with kernels.plain_forms():
    expected = kernels.attention(x, weight, 2, 10000.0)
sys.exit(None if mx.allclose(found, expected, atol=1e-3).item() else "error: attention is wrong")
"""


class _NotBuilt(Exception):
    """The extension can't be built. The message says why, and what to do."""


def _headers() -> tuple[Path, Path, Path]:
    """Return the folders of MLX and of nanobind, and that of Python's headers."""
    if shutil.which("g++") is None:
        raise _NotBuilt("there is no g++: on Debian or Ubuntu, apt install g++")
    packages = []
    for name in ("mlx", "nanobind"):
        spec = importlib.util.find_spec(name)
        places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
        packages += [place for place in places if (place / "include").is_dir()][:1]
    if len(packages) < 2:
        raise _NotBuilt("the headers of MLX or nanobind are missing: pip install -r requirements.txt")
    python = Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").exists():
        raise _NotBuilt("Python's headers are missing: on Debian or Ubuntu, apt install python3-dev")
    return packages[0], packages[1], python


def _cpu_flags() -> str:
    """Return what the processor can do, for which the loops are compiled."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _fingerprint() -> str:
    """Return a name for everything that a build depends on."""
    parts = [sys.version, version("mlx"), version("nanobind"), _cpu_flags(), *_LOOPS, *_WIDE, *_BINDING, _TRIAL]
    compiler = Path(shutil.which("g++") or "g++").resolve()
    parts += [str(compiler), str(compiler.stat().st_mtime_ns), *((_SOURCES / name).read_text() for name in _FILES)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"{command[0]} ended with status {done.returncode}"]
        raise _NotBuilt(next((line for line in lines if "error" in line.lower()), lines[-1])[:200])


def _build(folder: Path, mlx: Path, nanobind: Path, python: Path) -> None:
    """Build the extension in `folder`, and try it in a process of its own."""
    includes = [
        f"-I{path}" for path in (nanobind / "include", nanobind / "ext/robin_map/include", mlx / "include", python)
    ]
    options = {
        _SOURCES / "loops.cpp": _LOOPS + _WIDE,
        _SOURCES / "mlx_call.cpp": _BINDING + includes,
        nanobind / "src" / "nb_combined.cpp": _BINDING + includes,
    }
    objects = {source: str(folder / f"{source.stem}.o") for source in options}
    compilations = [
        ["g++", "-std=c++20", "-fPIC", "-c", *flags, str(source), "-o", objects[source]]
        for source, flags in options.items()
    ]
    with ThreadPoolExecutor() as compilers:
        list(compilers.map(_run, compilations))
    extension, library = str(folder / _EXTENSION), mlx / "lib"
    _run(["g++", "-shared", *objects.values(), f"-L{library}", "-lmlx", f"-Wl,-rpath,{library}", "-o", extension])
    environment = os.environ | {"HRM_NATIVE": extension, "PYTHONPATH": str(_SOURCES.parents[2])}
    try:
        _run([sys.executable, "-c", _TRIAL], environment)
    except _NotBuilt as error:
        raise _NotBuilt(f"they do not work with this MLX: {error}") from error


def prepare_native(kernels: Path | None, warn: Callable[[str], None]) -> None:
    """Set HRM_NATIVE to the extension, built in a folder within `kernels` where it isn't there yet.

    Args:
        kernels: an existing folder of ours whose libraries can be mapped; None without g++ or such a folder.
        warn: is passed a line if there can be none.
    """
    if os.environ.get("HRM_NATIVE"):  # of the process that started this one, or off
        return
    try:
        needed = _headers()
        if kernels is None:
            raise _NotBuilt("there is no folder for them")
        place = kernels / f"hrm-native-{_fingerprint()}"
        if not (place / _EXTENSION).exists() and not (place / _FAILED).exists():
            warn("compiling the loops of models/kernels/native for this processor, once")
            with tempfile.TemporaryDirectory(dir=kernels) as work:
                built = Path(work, "built")
                built.mkdir(mode=0o700)
                try:
                    _build(built, *needed)
                except _NotBuilt as error:
                    (built / _FAILED).write_text(str(error))
                with contextlib.suppress(OSError):  # another process has been faster
                    built.rename(place)
        if place.stat().st_uid != os.getuid() or place.stat().st_mode & 0o022:
            raise _NotBuilt(f"others can write to {place}")
        if (place / _FAILED).exists():
            raise _NotBuilt(f"{(place / _FAILED).read_text()}; delete {place} to try again")
        os.environ["HRM_NATIVE"] = str(place / _EXTENSION)
    except Exception as error:  # whatever goes wrong here costs speed, never the run
        warn(f"no loops for this processor ({error}); steps take up to twice as long (HRM_NATIVE=off hides this line)")
