"""How much memory the device has for this process, and how many rows of a batch fit into it, measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from models.kernels.streams import cpu_streams, on_gpu
from utils.config import MicroBatchSize
from utils.ranks.ranks import Ranks

# Of the device's memory, what MLX's arrays may take: the rest is for the system, for Python, and for pieces of freed
# memory that are too small for the next array.
SHARE = 0.8

_SETTLED = 0.05  # change of the bytes a row, from one size to its double, that ends the measurement
_NO_LIMIT = 1 << 60  # cgroups write one a little below 2**63


def size_text(number: int) -> str:
    """Write a number of bytes for people: 3.1 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}" if number < 100 * factor else f"{number / factor:,.0f} {unit}"
    return f"{number} bytes"


def how_to_save_memory(micro_batch_size: MicroBatchSize) -> str:
    """Say what to change where memory runs out.

    Args:
        micro_batch_size: of the configuration.
    """
    if micro_batch_size == 1:
        return "not even one row at a time fits: take a smaller model; forecast=true tells what it needs"
    if micro_batch_size == "auto":
        remedy = "give a smaller micro_batch_size than auto has taken"
    elif micro_batch_size is None:
        remedy = "micro_batch_size=auto computes as many rows at a time as fit"
    else:
        remedy = f"try micro_batch_size={micro_batch_size // 2}, or auto, which takes as many rows as fit"
    return f"{remedy}; forecast=true tells what is needed"


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of the device.

    Attributes:
        device: its name.
        total: bytes: on Metal the working set that the system recommends, on CUDA all of the GPU's, on a CPU the
            machine's, or the limit of the container.
        sharing: processes of this run that share it.
    """

    device: str
    total: int
    sharing: int = 1

    @property
    def budget(self) -> int:
        """Bytes that the arrays of this process may take."""
        return int(SHARE * self.total / self.sharing)


def device_memory(ranks: Ranks) -> DeviceMemory:
    """Find the memory of the device that computes. All ranks have to call this."""
    info = mx.device_info()
    if on_gpu():
        total = int(info.get("max_recommended_working_set_size", 0) or info["total_memory"])  # Metal's key; CUDA's
    else:
        total = min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _container_limit())
    own = [platform.node(), info.get("uuid", "")]  # CUDA's GPUs have one each
    return DeviceMemory(str(info.get("device_name", platform.machine())), total, ranks.gather(own).count(own))


def _container_limit(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the least memory limit of the control groups that this process is in, in bytes.

    Args:
        proc: the file that names the groups: lines of `number:controllers:/path`; version 2 has no controllers.
        root: where their files are.
    """
    limits = [_NO_LIMIT]
    for line in proc.read_text().splitlines() if proc.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):  # within a container the path may be that outside, and only `base` exist
            if folder.is_relative_to(base) and (file := folder / name).is_file():
                text = file.read_text().strip()
                limits += [int(text)] if text.isdigit() else []  # or "max"
    return min(limits)


@dataclass(frozen=True)
class RowMemory:
    """The bytes that rows computed together take, beside all that does not depend on their number.

    Bytes a row become fewer with more rows, until the activations outweigh the gradients of the weights. So a size that
    was not measured takes at most its share of the next smaller one that was.

    Attributes:
        measured: bytes by number of rows, 1 among them.
    """

    measured: dict[int, int]

    def of(self, rows: int) -> int:
        """Return the bytes that so many rows take at most."""
        below = max(size for size in self.measured if size <= rows)
        more = [taken for size, taken in self.measured.items() if size >= rows]
        return min([self.measured[below] * rows // below, *more])  # more rows never take less

    def fitting(self, room: int, most: int) -> int:
        """Return how many rows fit into `room` bytes, from 0 to `most`.

        Where they are not all of `most`, those of equal slices: no slower, and with the least memory.
        """
        rows = most
        while rows and self.of(rows) > room:
            below = max(size for size in self.measured if size <= rows)
            rows = min(rows - 1, max(room, 0) * below // self.measured[below])
        return -(-most // -(-most // rows)) if rows else 0


def measure_rows(compute: Callable[[int], None], most: int, room: int) -> RowMemory:
    """Measure the memory that rows take when they are computed together.

    One row, then twice as many each time, as long as twice as many will surely fit, and the bytes a row still change.

    Args:
        compute: computes so many rows, and keeps nothing of the results.
        most: rows that are wanted at most.
        room: bytes that they may take.
    """
    measured: dict[int, int] = {}
    rows, streams = 1, 1 if on_gpu() else len(cpu_streams())
    while True:
        _wait()
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        compute(rows)
        _wait()
        measured[rows] = max(1, mx.get_peak_memory() - before)
        # Until each of the CPU's streams has more than a row, every row brings the memory of a stream.
        if rows >= 2 * streams and rows // 2 in measured:
            settled = abs(1 - measured[rows] / rows / (measured[rows // 2] / (rows // 2))) < _SETTLED
        else:
            settled = False
        found, following = RowMemory(measured), min(2 * rows, most)
        if rows == most or settled or found.of(following) > room:
            mx.clear_cache()
            return found
        rows = following


def _wait() -> None:
    """Wait until the device has nothing left to do."""
    for stream in (mx.default_stream(mx.gpu),) if on_gpu() else cpu_streams():
        mx.synchronize(stream)
