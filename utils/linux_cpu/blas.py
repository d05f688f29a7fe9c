"""A fast BLAS under MLX's CPU backend on Linux. Called by `utils.linux_cpu`, before MLX is loaded.

The `mlx-cpu` wheel has the reference BLAS and LAPACK: correct, and some 50 times slower than OpenBLAS. MLX binds those
symbols when it is loaded, and the dynamic linker searches the global scope first, so an OpenBLAS that was loaded there
before takes their place. Three sources, in this order:

1. Intel's MKL, where somebody has installed the PyPI wheel `mkl` and the processor is Intel's, for which it is the
   fastest; it is too large (220 MB) to be required;
2. the system's OpenBLAS (`apt install libopenblas0-pthread`, …), loaded with `RTLD_GLOBAL`;
3. the PyPI wheel `scipy-openblas32`, which needs no root. It exports every function with the prefix `scipy_`, so a
   shared object with nothing but a symbol table is loaded too: the plain names as absolute symbols (`SHN_ABS`), at the
   addresses that the wheel's functions have in this process. It is written in memory, without a compiler.

Without any, one line on stderr names what to install, and everything works, slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

# Debian and Ubuntu put the chosen flavour behind the first name; Fedora has the next two; the last is a -dev package's.
SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblaso.so.0", "libopenblas.so")

# All that libmlx imports from BLAS and LAPACK (`nm -D --undefined-only libmlx.so`); 32-bit integers on both sides.
SYMBOLS = (
    *("cblas_sgemm", "cblas_dgemm", "cblas_cgemm", "sgeev_", "dgeev_", "cgeev_", "sgeqrf_", "dgeqrf_", "sgesdd_"),
    *("dgesdd_", "cgesdd_", "sgetrf_", "dgetrf_", "sgetri_", "dgetri_", "ssyevd_", "dsyevd_", "cheevd_", "sorgqr_"),
    *("dorgqr_", "spotrf_", "dpotrf_", "strtri_", "dtrtri_"),
)

ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
BUILT_IN = "built in"


def has_mlx_cpu_wheel() -> bool:
    """Return whether `import mlx` will load the `mlx-cpu` wheel's library, without importing it."""
    spec = importlib.util.find_spec("mlx")
    if spec is None or not spec.submodule_search_locations:
        return False
    # mlx is a namespace package, so any folder named mlx in sys.path is one of its places: search beside all of them.
    places = {Path(place).parent for place in spec.submodule_search_locations}
    return any(any(place.glob("mlx_cpu-*.dist-info")) for place in places) and not any(
        any(place.glob("mlx_cuda*.dist-info")) for place in places
    )


def _absolute_symbols_elf(addresses: dict[str, int], machine: int) -> bytes:
    """Build a shared object whose only content is a dynamic symbol table: every name at its absolute address.

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
    pt_load, pt_dynamic, pt_gnu_stack = 1, 2, 0x6474E551  # without the last the linker makes the stack executable
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


def _load_mkl() -> str | None:
    """Load MKL from the wheel of this environment and return its name; None if there is none."""
    path = next(Path(sys.prefix, "lib").glob("libmkl_rt.so*"), None)
    if path is None:
        return None
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", threads)
    os.environ.setdefault("MKL_THREADING_LAYER", "SEQUENTIAL" if threads == "1" else "INTEL")
    with contextlib.suppress(OSError):  # a part of it is missing
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        return "mkl"
    return None


def _is_intel() -> bool:
    return "GenuineIntel" in Path("/proc/cpuinfo").read_text()


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
    # The descriptor stays open: the linker compares paths of libraries, and a reused number would pass for this one.
    descriptor = os.memfd_create("openblas-names")
    os.write(descriptor, _absolute_symbols_elf(addresses, machine))
    ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=ctypes.RTLD_GLOBAL)
    found = ctypes.cast(ctypes.CDLL(None).cblas_sgemm, ctypes.c_void_p).value
    return "scipy-openblas32" if found == addresses["cblas_sgemm"] else None


def prepare_blas(warn: Callable[[str], None]) -> str:
    """Load a BLAS and return its name, or `BUILT_IN`; pass a line to `warn` if there is none."""
    wanted = os.environ.get("HRM_BLAS", "")
    if wanted == "off":
        return BUILT_IN
    loaded = None
    why = "no OpenBLAS found"
    try:
        if wanted == "mkl" or (wanted == "" and _is_intel()):
            loaded = _load_mkl()
        if loaded is None and wanted != "wheel":
            loaded = _load_system()
        if loaded is None and wanted != "system":
            loaded = _load_wheel()
    except Exception as error:  # whatever goes wrong here costs speed, never the run
        why = f"OpenBLAS could not be loaded ({error})"
    if loaded is None:
        warn(
            f"{why}: matmuls will be about 50 times slower; run `pip install scipy-openblas32` or, as root, "
            "`apt install libopenblas0-pthread` (HRM_BLAS=off hides this line)"
        )
    return loaded or BUILT_IN
