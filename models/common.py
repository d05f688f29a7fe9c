"""What every part of the model shares: the initialiser, names of dtypes, the device at hand, and random keys."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator

import mlx.core as mx

FORWARD_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

_CUT = 2.0  # where the unit normal is cut on either side
_DENSITY_AT_CUT = math.exp(-0.5 * _CUT**2) / math.sqrt(2.0 * math.pi)
_MASS_WITHIN_CUT = math.erf(_CUT / math.sqrt(2.0))
# A unit normal cut at ±2 has standard deviation 0.8796; dividing by it restores 1.
TRUNCATED_NORMAL_SCALE = 1.0 / math.sqrt(1.0 - 2.0 * _CUT * _DENSITY_AT_CUT / _MASS_WITHIN_CUT)


def on_gpu() -> bool:
    """Whether computations run on a GPU by default; a few functions have another form for CPUs."""
    return mx.default_device().type == mx.DeviceType.gpu


_of_thread = threading.local()  # MLX knows a stream only in the thread that made it


def cpu_streams() -> tuple[mx.Stream, ...]:
    """The streams for parts of a computation that don't depend on each other: HRM_STREAMS of them, by default one.

    What is done on a stream of MLX's CPU backend is done by one thread, save matrix products, which BLAS may spread.
    `utils.linux_cpu` sets HRM_STREAMS, and BLAS's threads to match.
    """
    if not hasattr(_of_thread, "streams"):
        more = int(os.environ.get("HRM_STREAMS", "1")) - 1
        _of_thread.streams = (mx.default_stream(mx.cpu), *(mx.new_stream(mx.cpu) for _ in range(more)))
    streams: tuple[mx.Stream, ...] = _of_thread.streams
    return streams


def distinct_shape(shape: tuple[int, ...], stream: mx.Stream) -> tuple[int, ...]:
    """`shape` behind as many axes of length 1 as make it another than on the other `cpu_streams()`.

    `mx.compile` broadcasts equal constants to equal shapes only once, on one stream. A kernel of another stream reads
    that copy element by element, where the constant could be part of its code, and is not vectorised.
    """
    streams = cpu_streams()
    number = streams.index(stream) if stream in streams else 0
    return (1,) * (1 + number) + tuple(shape)  # one axis on the first stream too, which keeps all graphs equally deep


def map_rows(function: Callable[..., tuple[mx.array, ...]], *arrays: mx.array) -> tuple[mx.array, ...]:
    """`function(*arrays)`; on a CPU each stream computes its share of the rows.

    Args:
        function: takes arrays `[b, …]` and returns arrays `[b, …]`, of which row i depends on row i of the arguments.
        arrays: all with the same number of rows.
    """
    rows = arrays[0].shape[0]
    parts = 1 if on_gpu() else min(len(cpu_streams()), rows)
    if parts == 1:
        return function(*arrays)
    results = []
    for part, stream in enumerate(cpu_streams()[:parts]):
        begin, end = rows * part // parts, rows * (part + 1) // parts
        with mx.stream(stream):
            results.append(function(*(array[begin:end] for array in arrays)))
    return tuple(mx.concatenate(list(column)) for column in zip(*results, strict=True))


def truncated_normal(shape: tuple[int, ...], std: float, key: mx.array) -> mx.array:
    """Draw from a normal cut at ±2 and rescaled so that the result has standard deviation `std`.

    This is the JAX/Flax definition, which the published model uses; every value lies within
    ±2 · 1.13685 · `std`.

    Returns:
        float32 array of the given shape.
    """
    return mx.random.truncated_normal(-_CUT, _CUT, shape, mx.float32, key=key) * (std * TRUNCATED_NORMAL_SCALE)


def random_keys(key: mx.array) -> Iterator[mx.array]:
    """Yield one fresh key after the other, all determined by `key`."""
    while True:
        key, subkey = mx.random.split(key)
        yield subkey
