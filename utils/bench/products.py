"""The time that the matmuls of a step would take alone, in MLX: what its other work is compared with."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from models.kernels.streams import cpu_streams, on_gpu, plain_forms

_MATMULS = ("Matmul", "AddMM")  # names of MLX's primitives
_SAME_LAYOUT = ("AsType", "Broadcast")  # primitives whose results lie in memory as their argument does
_LEAST_SECONDS = 0.02  # shorter products are repeated within one measurement
_MOST_BYTES = 256 << 20  # of the results that are held meanwhile


class Seconds(NamedTuple):
    """A duration: wall time, and processor time of all cores."""

    wall: float
    cpu: float

    def __mul__(self, factor: float) -> Seconds:  # type: ignore[override]  # a tuple's would repeat it
        return Seconds(self.wall * factor, self.cpu * factor)


def seconds(function: Callable[[], Any]) -> Seconds:
    """Measure the time until everything that `function` returns is computed."""
    mx.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    mx.eval(function())
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def least(found: Sequence[Seconds]) -> Seconds:
    """Return the least wall time and the least processor time."""
    return Seconds(min(s.wall for s in found), min(s.cpu for s in found))


def total(found: Sequence[Seconds]) -> Seconds:
    """Return the sums of wall time and of processor time."""
    return Seconds(sum(s.wall for s in found), sum(s.cpu for s in found))


@dataclass(frozen=True)
class Product:
    """`batch` matmuls of `[m, k]` with `[k, n]`.

    Attributes:
        batch: how many.
        m: rows of the left operand.
        k: columns of the left operand, rows of the right one.
        n: columns of the right operand.
        layout: for each operand `t` if it is transposed in memory, else `n`: x Wᵀ of a forward pass is `nt`, the
            gradient of x `nn`, that of W `tn`.
        dtype: of both.
    """

    batch: int
    m: int
    k: int
    n: int
    layout: str
    dtype: mx.Dtype

    @property
    def flops(self) -> int:
        """Floating point operations, a multiplication and an addition counting two."""
        return 2 * self.batch * self.m * self.k * self.n


def traced(function: Callable[..., Any], *arguments: Any) -> list[dict[str, Any]]:
    """List the primitives of the graph that a function builds, as `mx.export_function` describes them.

    Nothing is computed, and primitives that the results don't need are not in the list. Modules whose state the
    function changes are left with tracers.

    Args:
        function: takes and returns trees of arrays.
        arguments: of the function.

    Returns:
        The descriptions, in the order of the graph.
    """
    found: list[dict[str, Any]] = []
    names, arrays = zip(*tree_flatten(arguments), strict=True)

    def on_arrays(*arrays: mx.array) -> list[mx.array]:
        results = function(*tree_unflatten(list(zip(names, arrays, strict=True))))
        return list(dict(tree_flatten(results)).values())

    # On the CPU everywhere: a GPU has a primitive for attention, which hides its two matmuls.
    with mx.stream(mx.cpu), plain_forms():
        mx.export_function(found.append, on_arrays, *arrays)
    return [node for node in found if node["type"] == "primitive"]


def matmuls(function: Callable[..., Any], *arguments: Any) -> Counter[Product]:
    """Count the matmuls in the graph of `function(*arguments)`, as `traced` lists it; convolutions are left out."""
    counts: Counter[Product] = Counter()
    inner: dict[str, int] = {}  # by array: the axis, counted from the end, whose elements are neighbours in memory
    for node in traced(function, *arguments):
        if node["name"] in _MATMULS:
            (left, (*batch, m, k), dtype), (right, (*_, n), _) = node["inputs"][:2]
            layout = "".join("t" if inner.get(name) == -2 else "n" for name in (left, right))
            counts[Product(math.prod(batch), m, k, n, layout, dtype)] += 1
        elif node["name"] == "Transpose":
            (axes,), (source, *_), (result, *_) = node["arguments"], node["inputs"][0], node["outputs"][0]
            inner[result] = axes.index(len(axes) + inner.get(source, -1)) - len(axes)
        elif node["name"] in _SAME_LAYOUT:
            (source, *_), (result, *_) = node["inputs"][0], node["outputs"][0]
            inner[result] = inner.get(source, -1)
    return counts


class ProductTimer:
    """A timer of products, divided between the streams of a CPU as the model divides its rows.

    Args:
        products: what to measure; each gets random operands once.
    """

    def __init__(self, products: Sequence[Product]):
        self._operands = {p: _operands(p) for p in products}
        self._repeats = {}
        for p, operands in self._operands.items():
            _time(operands, 1)  # the first time includes what a device has to load
            wanted = 1 + int(_LEAST_SECONDS / max(_time(operands, 1).wall, 1e-6))
            self._repeats[p] = max(1, min(wanted, _MOST_BYTES // (p.batch * p.m * p.n * p.dtype.size)))

    def measure(self) -> dict[Product, Seconds]:
        """Measure each product once."""
        return {p: _time(operands, self._repeats[p]) for p, operands in self._operands.items()}


def _operands(p: Product) -> list[tuple[mx.Stream | None, mx.array, mx.array]]:
    """Draw for each stream its share of both operands, contiguous in memory, as views `[m, k]` and `[k, n]`."""
    left_transposed, right_transposed = (letter == "t" for letter in p.layout)
    axis = "batch" if p.batch > 1 else "k" if left_transposed else "m"
    size = getattr(p, axis)
    streams = [None] if on_gpu() else list(cpu_streams()[:size])
    operands = []
    for part, stream in enumerate(streams):
        share = replace(p, **{axis: size * (part + 1) // len(streams) - size * part // len(streams)})
        a = _random(share.batch, share.m, share.k, left_transposed, p.dtype)
        b = _random(share.batch, share.k, share.n, right_transposed, p.dtype)
        operands.append((stream, a[0], b[0]) if p.batch == 1 else (stream, a, b))
    mx.eval(operands)
    return operands


def _random(batch: int, rows: int, columns: int, transposed: bool, dtype: mx.Dtype) -> mx.array:
    in_memory = mx.random.normal((batch, columns, rows) if transposed else (batch, rows, columns)).astype(dtype)
    mx.eval(in_memory)
    return in_memory.swapaxes(-1, -2) if transposed else in_memory


def _time(operands: Sequence[tuple[mx.Stream | None, mx.array, mx.array]], repeats: int) -> Seconds:
    def products() -> list[mx.array]:
        return [mx.matmul(a, b, stream=stream) for _ in range(repeats) for stream, a, b in operands]

    return seconds(products) * (1 / repeats)
