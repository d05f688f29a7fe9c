"""The time that the matrix products of a step would take by themselves: a bound that no implementation gets below."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mlx.core as mx

from models.common import FORWARD_DTYPES, cpu_streams, on_gpu
from models.hrm.hrm_act_v1 import HierarchicalReasoningModel_ACTV1Config as ModelConfig
from models.layers import swiglu_width

_LEAST_SECONDS = 0.02  # products that are over sooner are repeated within one measurement
_MOST_BYTES = 256 << 20  # of results that are held meanwhile


class Seconds(NamedTuple):
    """How long something took: by the clock, and in time of all cores that worked on it."""

    wall: float
    cpu: float

    def __mul__(self, factor: float) -> Seconds:  # type: ignore[override]  # a tuple's would repeat it
        return Seconds(self.wall * factor, self.cpu * factor)


def seconds(function: Callable[[], Any]) -> Seconds:
    """The time until everything that `function` returns is computed."""
    mx.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    mx.eval(function())
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def least(found: Sequence[Seconds]) -> Seconds:
    """The least of each."""
    return Seconds(min(s.wall for s in found), min(s.cpu for s in found))


def total(found: Sequence[Seconds]) -> Seconds:
    """One after the other."""
    return Seconds(sum(s.wall for s in found), sum(s.cpu for s in found))


@dataclass(frozen=True)
class Product:
    """`batch` products of `[m, k]` with `[k, n]`, of which a step does `count`.

    `layout` says which of the two lies transposed in memory: `nt` is x Wᵀ, as in a forward pass, `nn` the gradient of
    x, `tn` that of W.
    """

    name: str
    batch: int
    m: int
    k: int
    n: int
    layout: str
    count: int = 1

    @property
    def flops(self) -> int:
        """Floating point operations of one of them, a multiplication and an addition counting two."""
        return 2 * self.batch * self.m * self.k * self.n


def _linear(name: str, rows: int, k: int, n: int) -> Product:
    return Product(name, 1, rows, k, n, "nt")


def _backward(p: Product) -> list[Product]:
    """The two products that the gradients of `p`'s arguments are."""
    if p.layout == "nt":
        left = replace(p, name=f"{p.name} ∂left", k=p.n, n=p.k, layout="nn")
        return [left, replace(p, name=f"{p.name} ∂right", m=p.n, k=p.m, n=p.k, layout="tn")]
    left = replace(p, name=f"{p.name} ∂left", k=p.n, n=p.k, layout="nt")
    return [left, replace(p, name=f"{p.name} ∂right", m=p.k, k=p.m, layout="tn")]


def _block(c: ModelConfig, batch: int, first: int | None = None) -> list[Product]:
    """The products of one block, forward; with `first`, as where only the first tokens of its result are needed."""
    d, heads, inter = c.hidden_size, c.num_heads, swiglu_width(c.hidden_size, c.expansion)
    t = c.seq_len + c.puzzle_emb_len
    tq = t if first is None else first
    if first is None:
        projections = [_linear("qkv", batch * t, d, 3 * d)]
    else:
        projections = [_linear("q", batch * tq, d, d), _linear("kv", batch * t, d, 2 * d)]
    found = [
        *projections,
        Product("scores", batch * heads, tq, d // heads, t, "nt"),
        Product("mix", batch * heads, tq, t, d // heads, "nn"),
        _linear("o", batch * tq, d, d),
        _linear("gate, up", batch * tq, d, 2 * inter),
        _linear("down", batch * tq, inter, d),
    ]
    return found if first is None else [replace(p, name=f"{p.name}, first {first}") for p in found]


def step_products(c: ModelConfig, batch: int, *, training: bool) -> list[Product]:
    """All matrix products of an outer step on `batch` rows, equal ones counted together.

    Training adds the backward pass through the last update of each level, and the target pass, whose last block needs
    no more than the first token.
    """
    blocks = c.H_cycles * (c.L_cycles * c.L_layers + c.H_layers)
    forward = _block(c, batch)
    heads = [_linear("lm head", batch * c.seq_len, c.hidden_size, c.vocab_size)]
    q_head = _linear("q head", batch, c.hidden_size, 2)
    found = forward * blocks + heads + [q_head]
    if training:
        differentiated = forward * (c.L_layers + c.H_layers) + heads + [q_head]
        found += [product for p in differentiated for product in _backward(p)]
        if c.halt_max_steps > 1:
            found += forward * (blocks - 1) + _block(c, batch, first=1) + [q_head]
    return [replace(p, count=found.count(p)) for p in dict.fromkeys(found)]


class ProductTimer:
    """Measures products of a dtype, dealt out to the streams of a CPU as the model deals out its rows.

    Args:
        products: what to measure; each gets random operands once.
        dtype: a name, such as `float32`.
    """

    def __init__(self, products: Sequence[Product], dtype: str):
        self.products = list(products)
        self._operands = [_operands(p, FORWARD_DTYPES[dtype]) for p in self.products]
        self._repeats = []
        for p, operands in zip(self.products, self._operands, strict=True):
            _time(operands, 1)  # the first time includes what a device has to load
            wanted = 1 + int(_LEAST_SECONDS / max(_time(operands, 1).wall, 1e-6))
            result_bytes = p.batch * p.m * p.n * FORWARD_DTYPES[dtype].size
            self._repeats.append(max(1, min(wanted, _MOST_BYTES // result_bytes)))

    def measure(self) -> list[Seconds]:
        """Seconds of one product of each kind."""
        return [_time(o, repeats) for o, repeats in zip(self._operands, self._repeats, strict=True)]


def _operands(p: Product, dtype: mx.Dtype) -> list[tuple[mx.Stream | None, mx.array, mx.array]]:
    """For each stream its share of both operands, whole in memory, and already seen as `[m, k]` and `[k, n]`."""
    axis = "batch" if p.batch > 1 else "k" if p.layout == "tn" else "m"
    size = getattr(p, axis)
    streams = [None] if on_gpu() else list(cpu_streams()[:size])
    operands = []
    for part, stream in enumerate(streams):
        share = replace(p, **{axis: size * (part + 1) // len(streams) - size * part // len(streams)})
        a = mx.random.normal((share.batch, share.k, share.m) if p.layout == "tn" else (share.batch, share.m, share.k))
        b = mx.random.normal((share.batch, share.n, share.k) if p.layout == "nt" else (share.batch, share.k, share.n))
        a, b = a.astype(dtype), b.astype(dtype)
        if p.batch == 1:
            a, b = a[0], b[0]
        mx.eval(a, b)
        a = a.swapaxes(-1, -2) if p.layout == "tn" else a
        b = b.swapaxes(-1, -2) if p.layout == "nt" else b
        mx.eval(a, b)
        operands.append((stream, a, b))
    return operands


def _time(operands: Sequence[tuple[mx.Stream | None, mx.array, mx.array]], repeats: int) -> Seconds:
    def products() -> list[mx.array]:
        return [mx.matmul(a, b, stream=stream) for _ in range(repeats) for stream, a, b in operands]

    return seconds(products) * (1 / repeats)
