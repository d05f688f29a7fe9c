"""What MLX needs on a Linux CPU before it is loaded. Import this package first; it never raises.

`cores.py`: a stream for each core. `memory.py`: memory that is kept from one step to the next. `kernels.py`: a folder
for the kernels of `mx.compile`. `blas.py`: a fast BLAS. On macOS (Accelerate, Metal), with MLX's CUDA build and with an
MLX built from source, nothing is done.

Environment: `HRM_BLAS=system` or `wheel` admits only that source, `off` keeps MLX's own BLAS without a word.
`HRM_STREAMS`: number of streams. `OPENBLAS_NUM_THREADS`, `OMP_NUM_THREADS`: threads of BLAS for each of them.
"""

from __future__ import annotations

from utils.linux_cpu.blas import BUILT_IN, has_mlx_cpu_wheel, prepare_blas
from utils.linux_cpu.cores import check_streams, deal_out_the_cores
from utils.linux_cpu.kernels import prepare_kernels
from utils.linux_cpu.memory import keep_memory

import os
import sys


def _say(line: str) -> None:
    """One line for the person at the terminal; under `mlx.launch` from the first process only."""
    if os.environ.get("MLX_RANK", "0") == "0":
        print(f"utils.linux_cpu: {line}", file=sys.stderr)


def _prepare() -> str:
    check_streams(_say)
    if not sys.platform.startswith("linux") or not has_mlx_cpu_wheel():
        return BUILT_IN
    if "mlx.core" in sys.modules:
        _say(
            "imported after mlx, too late for a fast BLAS: move `import utils.linux_cpu` above the first import of mlx"
        )
        return BUILT_IN
    deal_out_the_cores()
    keep_memory()
    prepare_kernels(_say)
    return prepare_blas(_say)


#: What carries out matmuls on the CPU: the library's name, or "built in" for MLX's own (Accelerate on macOS).
blas_name: str = _prepare()
