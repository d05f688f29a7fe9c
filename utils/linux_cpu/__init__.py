"""Preparations for MLX on a Linux CPU, before MLX is loaded. Import this package first; it never raises.

`cores.py`: a stream for each core. `memory.py`: memory that is kept from one step to the next. `kernels.py`: a folder
for the kernels of `mx.compile`. `native.py`: loops of our own. `blas.py`: a fast BLAS. On macOS (Accelerate, Metal),
with MLX's CUDA build and with an MLX built from source, nothing is done.

Environment: `HRM_BLAS=mkl` tries that first, `system` or `wheel` only that source, `off` keeps MLX's own BLAS without a
warning. `HRM_NATIVE=off`: plain MLX in place of our own loops. `HRM_STREAMS`: number of streams.
`OPENBLAS_NUM_THREADS`, `OMP_NUM_THREADS`: threads of BLAS for each of them.
"""

from __future__ import annotations

from utils.linux_cpu.blas import BUILT_IN, has_mlx_cpu_wheel, prepare_blas
from utils.linux_cpu.cores import check_streams, divide_cores
from utils.linux_cpu.kernels import prepare_kernels
from utils.linux_cpu.memory import keep_memory
from utils.linux_cpu.native import prepare_native

import os
import sys


def _warn(line: str) -> None:
    """Print a line on stderr, under `mlx.launch` on rank 0 only."""
    if os.environ.get("MLX_RANK", "0") == "0":
        print(f"utils.linux_cpu: {line}", file=sys.stderr)


def _prepare() -> str:
    check_streams(_warn)
    if not sys.platform.startswith("linux") or not has_mlx_cpu_wheel():
        return BUILT_IN
    if "mlx.core" in sys.modules:
        _warn(
            "imported after mlx, too late for a fast BLAS: move `import utils.linux_cpu` above the first import of mlx"
        )
        return BUILT_IN
    divide_cores()
    keep_memory()
    kernels = prepare_kernels(_warn)
    blas = prepare_blas(_warn)
    prepare_native(kernels, _warn)
    return blas


#: The library that computes matmuls on the CPU, or "built in" for MLX's own (Accelerate on macOS).
blas_name: str = _prepare()
