"""Where work is done: on a GPU as it comes, on a Linux CPU dealt out to one MLX stream a core.

What is done on a stream of MLX's CPU backend is done by one thread, save matmuls, which BLAS may spread.
`utils.linux_cpu` sets the number of streams, HRM_STREAMS, and BLAS's threads to match. Without it there is one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

T = TypeVar("T")

_of_thread = threading.local()  # MLX knows a stream only in the thread that made it


def on_gpu() -> bool:
    """Return whether computations run on a GPU by default."""
    return mx.default_device().type == mx.DeviceType.gpu


def cpu_streams() -> tuple[mx.Stream, ...]:
    """Return this thread's streams for parts of a computation that don't depend on each other."""
    if not hasattr(_of_thread, "streams"):
        more = int(os.environ.get("HRM_STREAMS", "1")) - 1
        _of_thread.streams = (mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(more)))
    streams: tuple[mx.Stream, ...] = _of_thread.streams
    return streams


def distinct_shape(shape: tuple[int, ...], stream: mx.Stream) -> tuple[int, ...]:
    """Put as many axes of length 1 before `shape` as make it another than on the other `cpu_streams()`.

    `mx.compile` broadcasts equal constants to equal shapes only once, on one stream. A kernel of another stream reads
    that copy element by element, where the constant could be part of its code, and is not vectorised.
    """
    streams = cpu_streams()
    number = streams.index(stream) if stream in streams else 0
    return (1,) * (1 + number) + tuple(shape)  # one axis on the first stream too, which keeps all graphs equally deep


def map_rows(function: Callable[..., T], *arguments: Any) -> T:
    """Return `function(*arguments)`; on a CPU each stream computes its share of the rows.

    Args:
        function: takes trees of arrays `[b, …]` and returns a tree of arrays `[b, …]`, or None. Row i of a result
            depends on row i of the arguments alone.
        arguments: trees of arrays, all with the same number of rows.
    """
    rows = len(dict(tree_flatten(arguments)).popitem()[1])
    parts = 1 if on_gpu() else min(len(cpu_streams()), rows)
    if parts == 1:
        return function(*arguments)
    results = []
    for part, stream in enumerate(cpu_streams()[:parts]):
        share = slice(rows * part // parts, rows * (part + 1) // parts)
        with mx.stream(stream):
            results.append(function(*tree_map(lambda array, share=share: array[share], arguments)))
    if results[0] is None:
        return results[0]
    joined: T = tree_map(lambda *parts: mx.concatenate(list(parts)), *results)
    return joined


class EvenShares:
    """Deals elementwise work out to the CPU's streams, each piece to the one with the fewest elements so far."""

    def __init__(self) -> None:
        self._elements = [0] * len(cpu_streams())

    def __call__(self, function: Callable[..., tuple[mx.array, ...]], *arrays: mx.array) -> tuple[mx.array, ...]:
        """Return `function(*arrays)`, a tuple of arrays; all arguments and results have one shape."""
        if on_gpu():
            return function(*arrays)
        least = self._elements.index(min(self._elements))
        self._elements[least] += arrays[0].size
        shape, own = arrays[0].shape, distinct_shape(arrays[0].shape, cpu_streams()[least])
        with mx.stream(cpu_streams()[least]):
            return tuple(result.reshape(shape) for result in function(*(array.reshape(own) for array in arrays)))
