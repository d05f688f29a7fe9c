"""A folder for the kernels of `mx.compile` on a Linux CPU. Called by `utils.linux_cpu`, before MLX is loaded.

MLX compiles its fused kernels with g++ in `<temporary folder>/mlx`, keeps them there for later runs, and raises where
that folder belongs to another user; then `TMPDIR` is set to a folder of our own. Without g++ in `PATH` MLX runs the
same graph unfused, slower; nothing is done here.

Every kernel begins with the same 40,000 lines of headers, which take g++ 0.3 s to read; a training step has some 50
kernels. So the headers are put beside the kernels in the compiler's own form (a precompiled header), once for each
version of MLX: a first training step with no kernel compiled before takes 8 s instead of 23 s (default model, two cores
of an Intel Xeon). g++ reads the headers themselves if it is missing or of another version.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

# As MLX calls it for kernels; with other options g++ doesn't take the result.
_OPTIONS = ("-std=c++17", "-O3", "-Wall", "-fPIC")
_HEADER = "mlx/backend/cpu/compiled_preamble.h"  # what every kernel includes first


def _precompile_headers(kernels: Path) -> None:
    """Begin to compile the header for kernels in `kernels`, if it isn't there, without waiting for it."""
    spec = importlib.util.find_spec("mlx")
    places = [Path(place, "include") for place in (spec and spec.submodule_search_locations) or ()]
    include = next((place for place in places if (place / _HEADER).exists()), None)
    result = kernels / version("mlx") / "cpu" / f"{_HEADER}.gch"
    if include is None or result.exists():
        return
    result.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = f"{result}.{os.getpid()}"
    build = ["g++", *_OPTIONS, "-x", "c++-header", "-I", str(include), str(include / _HEADER), "-o", written]
    # In the background: the shell ends at once. Renamed when it is complete.
    script = '(out=$1; last=$2; shift 2; "$@" && mv "$out" "$last" || rm -f "$out") >/dev/null 2>&1 </dev/null &'
    subprocess.run(["sh", "-c", script, "sh", written, str(result), *build], check=False)


def prepare_kernels(warn: Callable[[str], None]) -> Path | None:
    """Choose a folder whose libraries can be mapped, and return it.

    Without one, run MLX uncompiled, pass a line to `warn`, and return None; without g++ nothing is done.
    """
    if shutil.which("g++") is None:
        return None
    user = os.getuid()
    try:
        default = tempfile.gettempdir()
    except OSError as error:  # no temporary folder at all
        _run_uncompiled(warn, f"({error})")
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in (default, f"{default}/mlx-{user}", f"{home}/hrm-mlx"):
        kernels = Path(folder, "mlx")
        try:
            kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The libraries there become part of this process, so they must be ours, and a folder made for them too.
            ours = kernels.stat().st_uid == user and (folder == default or Path(folder).stat().st_uid == user)
            if ours and os.access(kernels, os.W_OK | os.X_OK) and not os.statvfs(kernels).f_flag & os.ST_NOEXEC:
                if folder != os.environ.get("TMPDIR", "/tmp"):
                    os.environ["TMPDIR"] = folder
                with contextlib.suppress(Exception):  # whatever goes wrong costs time, never the run
                    _precompile_headers(kernels)
                return kernels
        except OSError:
            continue
    _run_uncompiled(warn, f"in {default} or {home}")
    return None


def _run_uncompiled(warn: Callable[[str], None], why: str) -> None:
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    warn(f"no folder for mx.compile's kernels {why}: running uncompiled; set TMPDIR to a folder of yours")
