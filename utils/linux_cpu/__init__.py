"""What MLX needs on a Linux CPU before it is loaded. Import this module first; it never raises.

*A fast BLAS* (`utils.linux_cpu.blas`), and *a folder for kernels* (`utils.linux_cpu.kernels`).

*A stream for each core.* MLX carries out the operations of a CPU stream one after the other, and all but matrix
products on one core. So `models.common` deals out the rows of a batch to HRM_STREAMS streams, by default this process's
share of the cores, and each has the BLAS threads that are left for it: on a desktop one.

*Memory that is kept.* What one step frees, the next one needs; it is not given back to the system in between.

On macOS (Accelerate, Metal), with MLX's CUDA build and with an MLX built from source, nothing is done.

Environment: `HRM_BLAS=system` or `wheel` admits only that source, `off` keeps MLX's own BLAS without a word.
`HRM_STREAMS`: number of streams. `OPENBLAS_NUM_THREADS`, `OMP_NUM_THREADS`: threads of BLAS for each of them.
"""

from __future__ import annotations

from utils.linux_cpu.blas import BUILT_IN, prepare_blas
from utils.linux_cpu.kernels import prepare_kernels

import ctypes
import importlib.util
import json
import os
import resource
import sys
from pathlib import Path

_LARGEST_KEPT = 1 << 30  # buffers beyond this, bytes, are few, and come from the system
_LARGE_PAGE = 1 << 21
_MAX_HEAP = 16 << 30  # bytes of addresses set aside for large pages
_MAX_STREAMS = 8  # the graph of a step, and the time to build it, grow with their number


def _say(line: str) -> None:
    """One line for the person at the terminal; under `mlx.launch` from the first process only."""
    if os.environ.get("MLX_RANK", "0") == "0":
        print(f"utils.linux_cpu: {line}", file=sys.stderr)


def _has_mlx_cpu_wheel() -> bool:
    """Whether `import mlx` will load the `mlx-cpu` wheel's library; found out without importing anything of it."""
    spec = importlib.util.find_spec("mlx")
    if spec is None or not spec.submodule_search_locations:
        return False
    # mlx is a namespace package, so any folder named mlx in sys.path is one of its places: look beside all of them.
    places = {Path(place).parent for place in spec.submodule_search_locations}
    return any(any(place.glob("mlx_cpu-*.dist-info")) for place in places) and not any(
        any(place.glob("mlx_cuda*.dist-info")) for place in places
    )


def _share_of_the_cores() -> int:
    """How many cores this process may really use.

    Two ranks on two cores are a third faster with one thread each than with two (measured); a container with a quota of
    4 CPUs on a machine of 64 cores would be throttled most of the time.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no such file outside cgroup v2; "max 100000" without a quota
        pass
    try:  # written by `mlx.launch`: one list of "ip:port" for every rank
        hosts = [rank[0].rpartition(":")[0] for rank in json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())]
        cores //= hosts.count(hosts[int(os.environ["MLX_RANK"])])
    except (OSError, KeyError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return max(cores, 1)


def _deal_out_the_cores() -> None:
    """Set the number of streams, and of OpenBLAS's threads for each, where the user has not."""
    cores = _share_of_the_cores()
    threads = os.environ.get("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", ""))
    taken = int(threads) if threads.isdecimal() else 0
    if "HRM_STREAMS" not in os.environ:
        os.environ["HRM_STREAMS"] = str(max(1, min(cores // max(taken, 1), _MAX_STREAMS)))
    streams = int(os.environ["HRM_STREAMS"])
    if taken < 1:
        os.environ["OPENBLAS_NUM_THREADS"] = str(max(1, cores // streams))
    if streams > 1:
        # MLX hands out work level by level of the graph only as long as a level is narrower than this, by default 20;
        # after that one branch after the other, so that one stream waits for the other throughout a backward pass.
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1000")


def _addresses_are_limited() -> bool:
    """Whether addresses are counted as if they were memory, by `ulimit` or the kernel: then none can be set aside."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return True


def _keep_memory() -> None:
    """Have malloc keep what is freed, in large pages.

    MLX takes the memory of every intermediate result from malloc, which would give buffers of this size back to the
    system and get them anew, cleared, page by page: up to a sixth of a step. As a side effect the process never gives
    back what it once used. Works with glibc; elsewhere nothing happens.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or _addresses_are_limited():
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    libc.mallopt(m_mmap_threshold, _LARGEST_KEPT)
    libc.mallopt(m_trim_threshold, -1)
    libc.mallopt(m_arena_max, 1)  # one heap, the main one, for all threads
    # The heap is made to grow, marked for large pages, and left empty: none of it takes memory before it is used.
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size, madv_hugepage = _LARGEST_KEPT - (1 << 12), 14
    blocks = []
    for _ in range(max(1, min(_MAX_HEAP, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2) // size)):
        block = libc.malloc(size)
        if not block:
            break
        blocks.append(block)
    for block in blocks:
        begin = -(-block // _LARGE_PAGE) * _LARGE_PAGE
        libc.madvise(begin, (block + size - begin) // _LARGE_PAGE * _LARGE_PAGE, madv_hugepage)
    for block in reversed(blocks):
        libc.free(block)


def _check_streams() -> None:
    """Make HRM_STREAMS a number that every later reader can take as it is; on GPUs too, where the CPU may be chosen."""
    streams = os.environ.get("HRM_STREAMS", "1")
    if not (streams.isascii() and streams.isdecimal() and int(streams) > 0):
        _say(f"HRM_STREAMS={streams} is no number of streams, expected 1 or more: taken as 1")
        os.environ["HRM_STREAMS"] = "1"


def _prepare() -> str:
    _check_streams()
    if not sys.platform.startswith("linux") or not _has_mlx_cpu_wheel():
        return BUILT_IN
    if "mlx.core" in sys.modules:
        _say(
            "imported after mlx, too late for a fast BLAS: move `import utils.linux_cpu` above the first import of mlx"
        )
        return BUILT_IN
    _deal_out_the_cores()
    _keep_memory()
    try:
        prepare_kernels(_say)
    except OSError as error:  # no temporary folder at all
        os.environ["MLX_DISABLE_COMPILE"] = "1"
        _say(f"no folder for mx.compile's kernels ({error}): running uncompiled; set TMPDIR to a folder of yours")
    return prepare_blas(_say)


#: What carries out matrix products on the CPU: the library's name, or "built in" for MLX's own (Accelerate on macOS).
blas_name: str = _prepare()
