"""The functions of `models.kernels` by the loops of `native/loops.cpp`, with their derivatives.

`utils.linux_cpu` builds these loops once for a machine and names the result in HRM_NATIVE; where it could not, plain
MLX does the same work. All arrays are float32. The loops have first derivatives, and neither jvp nor vmap.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np


@functools.cache
def native() -> Any:
    """Return the extension module with the loops, or None where there is none."""
    path = os.environ.get("HRM_NATIVE", "")
    if not os.path.isfile(path):
        return None
    spec = importlib.util.spec_from_file_location("hrm_native", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]  # None only for an unknown ending
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _call(loop: str, inputs: Sequence[mx.array], shapes: Sequence[tuple[int, ...]], *numbers: float) -> list[mx.array]:
    """Run a loop on the current stream: float32 arrays, the shapes of its results, and its numbers."""
    results: list[mx.array] = native().call(
        loop, list(inputs), [list(shape) for shape in shapes], list(map(float, numbers))
    )
    return results


def _differentiable(
    function: Callable[..., list[mx.array]],
    derivative: Callable[[mx.array, Sequence[mx.array], Sequence[mx.array]], Sequence[mx.array]],
    *arrays: mx.array,
) -> mx.array:
    """Return the first result of `function(*arrays)`, differentiated by `derivative(cotangent, results, arrays)`.

    Further results are for the derivative alone.
    """
    stream = mx.default_stream(mx.default_device())
    custom = mx.custom_function(function)

    @custom.vjp
    def vjp(primals: Any, cotangents: Any, results: Any) -> Any:
        primals = [primals] if isinstance(primals, mx.array) else primals
        with mx.stream(stream):  # otherwise it would run on the stream of the caller of the backward pass
            found = derivative(cotangents[0], results, primals)
        return found[0] if len(primals) == 1 else tuple(found)

    return custom(*arrays)[0]  # type: ignore[index]  # object in its stub


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """Compute x Wᵀ, with a gradient of the weight that is contiguous, where MLX's own is a transposed view."""

    def derivative(cotangent: mx.array, _: Any, primals: Sequence[mx.array]) -> Sequence[mx.array]:
        x, weight = primals
        of_rows, rows = (array.reshape(-1, array.shape[-1]) for array in (cotangent, x))
        return cotangent @ weight, of_rows.T @ rows

    return _differentiable(lambda x, weight: [x @ weight.T], derivative, x, weight)


def swiglu(x: mx.array, gate_up_weight: mx.array) -> mx.array:
    """Compute silu(x Gᵀ) · x Uᵀ."""
    gate_up = linear(x, gate_up_weight)
    inter = gate_up.shape[-1] // 2
    rows = gate_up.size // (2 * inter)

    def function(gate_up: mx.array) -> list[mx.array]:
        return _call("swiglu", [gate_up], [(*gate_up.shape[:-1], inter)], rows, inter)

    def derivative(cotangent: mx.array, _: Any, primals: Sequence[mx.array]) -> Sequence[mx.array]:
        return _call("swiglu_backward", [cotangent, *primals], [gate_up.shape], rows, inter)

    return _differentiable(function, derivative, gate_up)


def silu(x: mx.array) -> mx.array:
    """Compute x · sigmoid(x)."""

    def derivative(cotangent: mx.array, _: Any, primals: Sequence[mx.array]) -> Sequence[mx.array]:
        return _call("silu_backward", [cotangent, *primals], [x.shape], x.size)

    return _differentiable(lambda x: _call("silu", [x], [x.shape], x.size), derivative, x)


@functools.cache
def _rotation(tokens: int, head_size: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine of the angles by which the pairs of a head are rotated, float32 `[t, head_size / 2]`."""
    frequencies = theta ** (-np.arange(0, head_size, 2) / head_size)
    angles = np.arange(tokens)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def attention(qkv: mx.array, num_heads: int, rope_theta: float | None) -> mx.array:
    """Compute self-attention, see `models.kernels.attention`. The weights are formed in tiles and never kept."""
    b, t, width = qkv.shape
    d = width // 3
    head_size = d // num_heads
    tables = [] if rope_theta is None else [mx.array(table) for table in _rotation(t, head_size, rope_theta)]
    numbers = (b, t, num_heads, head_size, head_size**-0.5, rope_theta is not None)

    def function(qkv: mx.array) -> list[mx.array]:
        return _call("attention", [qkv, *tables], [(b, t, d), (b, num_heads, t)], *numbers)

    def derivative(cotangent: mx.array, results: Sequence[mx.array], primals: Sequence[mx.array]) -> Sequence[mx.array]:
        return _call("attention_backward", [cotangent, *primals, *results, *tables], [(b, t, width)], *numbers)

    return _differentiable(function, derivative, qkv)


def add_rms_norm(x: mx.array, y: mx.array, eps: float) -> mx.array:
    """Compute (x + y) / sqrt(mean((x + y)²) + eps) over the last axis."""
    d = x.shape[-1]
    rows = x.size // d

    def function(x: mx.array, y: mx.array) -> list[mx.array]:
        return _call("add_rms_norm", [x, y], [x.shape, (rows,)], rows, d, eps)

    def derivative(cotangent: mx.array, results: Sequence[mx.array], _: Any) -> Sequence[mx.array]:
        of_sum = _call("add_rms_norm_backward", [cotangent, *results], [x.shape], rows, d)[0]
        return of_sum, of_sum

    return _differentiable(function, derivative, x, y)


def adam_atan2(gradient: mx.array, parameter: mx.array, m: mx.array, v: mx.array, factors: mx.array) -> list[mx.array]:
    """Update a parameter and its moments, see `models.kernels.adam_atan2`."""
    shapes = [parameter.shape] * 3
    return _call("adam_atan2", [gradient, parameter, m, v, factors], shapes, parameter.size)
