"""Where work is done: on a GPU as it comes, on a Linux CPU divided between MLX streams, one a core.

One thread does the work of a stream of MLX's CPU backend, except for matmuls, which BLAS may spread.
`utils.linux_cpu` sets the number of streams, HRM_STREAMS, and BLAS's threads to match. Without it there is one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

T = TypeVar("T")

_of_thread = threading.local()  # a stream of MLX is valid only in the thread that made it
_plain_wanted = ContextVar("_plain_wanted", default=False)


def on_gpu() -> bool:
    """Return whether computations run on a GPU by default."""
    return mx.default_device().type == mx.DeviceType.gpu


def device_kind() -> str:
    """Return where computations run by default: "metal", "cuda" or "cpu"."""
    if not on_gpu():
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def takes_plain_forms() -> bool:
    """Return whether functions are computed in plain MLX and in one piece: on a GPU, and within `plain_forms`."""
    return on_gpu() or _plain_wanted.get()


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Use the forms of a GPU on a CPU within the block, for a graph that is exported and not computed.

    The forms of `cpu.py` have derivatives of their own, and MLX can't export such functions.
    """
    token = _plain_wanted.set(True)
    try:
        yield
    finally:
        _plain_wanted.reset(token)


def cpu_streams() -> tuple[mx.Stream, ...]:
    """Return this thread's streams, for parts of a computation that don't depend on each other."""
    if not hasattr(_of_thread, "streams"):
        more = int(os.environ.get("HRM_STREAMS", "1")) - 1
        _of_thread.streams = (mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(more)))
    streams: tuple[mx.Stream, ...] = _of_thread.streams
    return streams


def map_rows(function: Callable[..., T], *arguments: Any) -> T:
    """Apply a function to the rows of its arguments; on a CPU each stream computes its share of the rows.

    Args:
        function: takes trees of arrays `[b, …]`, or None in place of an array, and returns a tree of arrays `[b, …]`.
            Row i of a result depends on row i of the arguments alone.
        arguments: trees of arrays, all with the same number of rows, or None.

    Returns:
        `function(*arguments)`.
    """
    rows = next(len(leaf) for leaf in dict(tree_flatten(arguments)).values() if leaf is not None)
    parts = 1 if takes_plain_forms() else min(len(cpu_streams()), rows)
    if parts == 1:
        return function(*arguments)
    results = []
    for part, stream in enumerate(cpu_streams()[:parts]):
        share = slice(rows * part // parts, rows * (part + 1) // parts)
        own = tree_map(lambda leaf, share=share: None if leaf is None else leaf[share], arguments)
        with mx.stream(stream):
            results.append(function(*own))
    joined: T = tree_map(lambda *parts: mx.concatenate(list(parts)), *results)
    return joined


class EvenShares:
    """Distribution of elementwise work over the CPU's streams: each piece goes to the one with the fewest elements."""

    def __init__(self) -> None:
        self._elements = [0] * len(cpu_streams())

    def __call__(self, function: Callable[..., T], elements: int, *arrays: mx.array) -> T:
        """Return `function(*arrays)`, a piece of work of so many elements."""
        if takes_plain_forms():
            return function(*arrays)
        least = self._elements.index(min(self._elements))
        self._elements[least] += elements
        with mx.stream(cpu_streams()[least]):
            return function(*arrays)
