"""What MLX needs on a Linux CPU before it is loaded. Import this module first; it never raises.

*A fast BLAS.* The `mlx-cpu` wheel brings the reference BLAS and LAPACK: correct, and some 50 times slower than the
machine. MLX binds those symbols when it is loaded, and the dynamic linker looks in the global scope first, so an
OpenBLAS that was loaded there before takes their place. Two sources, in this order:

1. the system's OpenBLAS (`apt install libopenblas0-pthread`, …), loaded with `RTLD_GLOBAL`;
2. the PyPI wheel `scipy-openblas32`, which needs no root. It exports every function with the prefix `scipy_`, so we
   also load a shared object that is nothing but a symbol table: the plain names as absolute symbols (`SHN_ABS`), at the
   addresses that the wheel's functions have in this process. It is written in memory, without a compiler.

With neither, one line on stderr says what to install, and everything works, slowly.

*A folder for kernels.* `mx.compile` has g++ build its fused kernels in `<temporary folder>/mlx`, keeps them there for
later runs, and raises where that folder belongs to another user; then `TMPDIR` is set to a folder of our own. Without
g++ in PATH MLX itself runs the same graph unfused: slower, and nothing to do for us.

On macOS (Accelerate, Metal), with MLX's CUDA build and with an MLX built from source, nothing is done.

*A stream for each core.* MLX carries out the operations of a CPU stream one after the other, and all but matrix
products on one core. So `models.common` deals out the rows of a batch to HRM_STREAMS streams, by default this process's
share of the cores, and each has the BLAS threads that are left for it: on a desktop one.

Environment: `HRM_BLAS=system` or `wheel` admits only that source, `off` keeps MLX's own BLAS without a word.
`HRM_STREAMS`: number of streams. `OPENBLAS_NUM_THREADS`, `OMP_NUM_THREADS`: threads of BLAS for each of them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import struct
import sys
import tempfile
from pathlib import Path

# Debian and Ubuntu put the chosen flavour behind the first name; Fedora has the next two; the last is a -dev package's.
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblaso.so.0", "libopenblas.so")

# All that libmlx imports from BLAS and LAPACK (`nm -D --undefined-only libmlx.so`); 32-bit integers on both sides.
SYMBOLS = (
    *("cblas_sgemm", "cblas_dgemm", "cblas_cgemm", "sgeev_", "dgeev_", "cgeev_", "sgeqrf_", "dgeqrf_", "sgesdd_"),
    *("dgesdd_", "cgesdd_", "sgetrf_", "dgetrf_", "sgetri_", "dgetri_", "ssyevd_", "dsyevd_", "cheevd_", "sorgqr_"),
    *("dorgqr_", "spotrf_", "dpotrf_", "strtri_", "dtrtri_"),
)

_LARGEST_KEPT = 1 << 30  # buffers beyond this, bytes, are few, and come from the system
_LARGE_PAGE = 1 << 21
MAX_HEAP = 16 << 30  # bytes of addresses set aside for large pages
MAX_STREAMS = 8  # the graph of a step, and the time to build it, grow with their number

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
BUILT_IN = "built in"


def _say(line: str) -> None:
    """One line for the person at the terminal; under `mlx.launch` from the first process only."""
    if os.environ.get("MLX_RANK", "0") == "0":
        print(f"utils.cpu: {line}", file=sys.stderr)


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
    threads = os.environ.get("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS"))
    if "HRM_STREAMS" not in os.environ:
        taken = int(threads) if threads and threads.isdecimal() else 1
        os.environ["HRM_STREAMS"] = str(max(1, min(cores // max(taken, 1), MAX_STREAMS)))
    streams = os.environ["HRM_STREAMS"]
    if not streams.isdecimal() or int(streams) < 1:
        _say(f"HRM_STREAMS={streams} is no number of streams, expected 1 or more: taken as 1")
        streams = os.environ["HRM_STREAMS"] = "1"
    if threads is None:
        os.environ["OPENBLAS_NUM_THREADS"] = str(max(1, cores // int(streams)))
    if int(streams) > 1:
        # MLX hands out work level by level of the graph only as long as a level is narrower than this, by default 20;
        # after that one branch after the other, so that one stream waits for the other throughout a backward pass.
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1000")


def _absolute_symbols_elf(addresses: dict[str, int], machine: int) -> bytes:
    """A shared object whose only content is a dynamic symbol table: every name at its absolute address.

    The linker adds no load address to `SHN_ABS` symbols (glibc >= 2.28; MLX's wheels need 2.35). In the file follow ELF
    header, program headers, dynamic section, symbols, hash table and names; file offsets are the virtual addresses.
    """
    shn_abs, global_function = 0xFFF1, 1 << 4 | 2
    names, symbols = b"\0", bytes(24)  # entry 0 of a symbol table is empty
    for name, address in addresses.items():
        symbols += struct.pack("<IBBHQQ", len(names), global_function, 0, shn_abs, address, 0)
        names += name.encode() + b"\0"
    count = len(addresses) + 1
    # One bucket that chains all symbols, 1 → 2 → … → 0: two dozen names need no hash function.
    hash_table = struct.pack(f"<{3 + count}I", 1, count, 1, 0, *range(2, count), 0)

    dynamic_at = 64 + 3 * 56
    symbols_at = dynamic_at + 6 * 16
    hash_at = symbols_at + len(symbols)
    names_at = hash_at + len(hash_table)
    size = names_at + len(names)
    dt_null, dt_hash, dt_strtab, dt_symtab, dt_strsz, dt_syment = 0, 4, 5, 6, 10, 11
    tags = (dt_hash, hash_at), (dt_strtab, names_at), (dt_symtab, symbols_at), (dt_strsz, len(names)), (dt_syment, 24)
    dynamic = b"".join(struct.pack("<2Q", *tag) for tag in (*tags, (dt_null, 0)))
    pt_load, pt_dynamic, pt_gnu_stack = 1, 2, 0x6474E551  # without the last the linker wants an executable stack
    read_write = 6  # before glibc 2.35 the linker relocates the dynamic section in place
    segments = (
        (pt_load, read_write, 0, 0, 0, size, size, 1 << 16),  # 64 kB pages at most
        (pt_dynamic, read_write, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8),
        (pt_gnu_stack, read_write, 0, 0, 0, 0, 0, 16),
    )
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little endian
    header += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    header += b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in segments)
    return header + dynamic + symbols + hash_table + names


def _load_system() -> str | None:
    """Load the system's OpenBLAS globally and return its name; None if there is none."""
    for name in SYSTEM_LIBRARIES:
        try:
            if hasattr(ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL), "cblas_sgemm"):
                return name
        except OSError:
            continue
    return None


def _load_wheel() -> str | None:
    """Load the wheel's OpenBLAS and give its functions their plain names; None if there is none."""
    spec = importlib.util.find_spec("scipy_openblas32")
    machine = ELF_MACHINES.get(os.uname().machine)
    if spec is None or not spec.origin or machine is None:
        return None
    path = next((Path(spec.origin).parent / "lib").glob("libscipy_openblas*.so"), None)
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    functions = {name: getattr(library, f"scipy_{name}", None) for name in SYMBOLS}
    addresses = {name: ctypes.cast(f, ctypes.c_void_p).value or 0 for name, f in functions.items() if f is not None}
    # The descriptor stays open: the linker knows a library by its path, so a reused number would pass for this one.
    descriptor = os.memfd_create("openblas-names")
    os.write(descriptor, _absolute_symbols_elf(addresses, machine))
    ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_GLOBAL)
    found = ctypes.cast(ctypes.CDLL(None).cblas_sgemm, ctypes.c_void_p).value
    return "scipy-openblas32" if found == addresses["cblas_sgemm"] else None


def _prepare_blas() -> str:
    wanted = os.environ.get("HRM_BLAS", "")
    if wanted == "off":
        return BUILT_IN
    loaded = None
    why = "no OpenBLAS found"
    try:
        loaded = (_load_system() if wanted != "wheel" else None) or (_load_wheel() if wanted != "system" else None)
    except Exception as error:  # whatever goes wrong here costs speed, never the run
        why = f"OpenBLAS could not be loaded ({error})"
    if loaded is None:
        _say(
            f"{why}: matrix products will be about 50 times slower; `pip install scipy-openblas32` or, as root, "
            "`apt install libopenblas0-pthread` mends that (HRM_BLAS=off hides this line)"
        )
    return loaded or BUILT_IN


def _keep_memory() -> None:
    """Have malloc keep what is freed, in large pages.

    MLX takes the memory of every intermediate result from malloc, which would give buffers of this size back to the
    system and get them anew, cleared, page by page: up to a sixth of a step. As a side effect the process never gives
    back what it once used. Works with glibc; elsewhere nothing happens.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
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
    for _ in range(max(1, min(MAX_HEAP, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2) // size)):
        block = libc.malloc(size)
        if not block:
            break
        blocks.append(block)
    for block in blocks:
        begin = -(-block // _LARGE_PAGE) * _LARGE_PAGE
        libc.madvise(begin, (block + size - begin) // _LARGE_PAGE * _LARGE_PAGE, madv_hugepage)
    for block in reversed(blocks):
        libc.free(block)


def _prepare_kernel_folder() -> None:
    """Keep `mx.compile` from failing where its folder belongs to somebody else, or its libraries can't be mapped."""
    if shutil.which("g++") is None:
        return
    user = os.getuid()
    default = tempfile.gettempdir()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in (default, f"{default}/mlx-{user}", f"{home}/hrm-mlx"):
        kernels = Path(folder, "mlx")
        try:
            kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The libraries in there become our code, so they must be ours, and so must a folder that we made for them.
            ours = kernels.stat().st_uid == user and (folder == default or Path(folder).stat().st_uid == user)
            if ours and os.access(kernels, os.W_OK | os.X_OK) and not os.statvfs(kernels).f_flag & os.ST_NOEXEC:
                if folder != os.environ.get("TMPDIR", "/tmp"):
                    os.environ["TMPDIR"] = folder
                return
        except OSError:
            continue
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    _say(f"no folder for mx.compile's kernels in {default} or {home}: running uncompiled; set TMPDIR to one of yours")


def _prepare() -> str:
    if not sys.platform.startswith("linux") or not _has_mlx_cpu_wheel():
        return BUILT_IN
    if "mlx.core" in sys.modules:
        _say("imported after mlx, too late for a fast BLAS: move `import utils.cpu` above the first import of mlx")
        return BUILT_IN
    _deal_out_the_cores()
    _keep_memory()
    try:
        _prepare_kernel_folder()
    except OSError as error:  # no temporary folder at all
        os.environ["MLX_DISABLE_COMPILE"] = "1"
        _say(f"no folder for mx.compile's kernels ({error}): running uncompiled; set TMPDIR to a folder of yours")
    return _prepare_blas()


#: What carries out matrix products on the CPU: the library's name, or "built in" for MLX's own (Accelerate on macOS).
blas: str = _prepare()
