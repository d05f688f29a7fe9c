"""The number of streams of a Linux CPU, and of BLAS threads. Called by `utils.linux_cpu`, before MLX is loaded.

MLX carries out the operations of a CPU stream one after the other, and all but matmuls on one core. So
`models.kernels.streams` divides the rows of a batch between HRM_STREAMS streams, by default this process's share of the
cores, each with the BLAS threads that are left for it: on a desktop one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

_MAX_STREAMS = 8  # the graph of a step, and the time to build it, grow with their number


def check_streams(warn: Callable[[str], None]) -> None:
    """Set HRM_STREAMS to 1 if it is no valid number; on GPUs too, where the CPU may be chosen later."""
    streams = os.environ.get("HRM_STREAMS", "1")
    if not (streams.isascii() and streams.isdecimal() and int(streams) > 0):
        warn(f"HRM_STREAMS={streams} is no number of streams, expected 1 or more: taken as 1")
        os.environ["HRM_STREAMS"] = "1"


def divide_cores() -> None:
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
        # MLX schedules the graph level by level only while a level is narrower than this, by default 20; after that
        # one branch after the other, so that one stream waits for the other throughout a backward pass.
        os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1000")


def _share_of_the_cores() -> int:
    """Count the cores that this process may use, without those of other ranks.

    Two ranks on two cores are faster with one thread each than with two; a container with a quota of 4 CPUs on a
    machine of 64 cores would be throttled most of the time.
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
