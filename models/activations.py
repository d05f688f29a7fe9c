"""SiLU and attention in the form that the device at hand computes fastest.

GPUs have a fast exponential and fused kernels, which are used as they are. MLX's CPU backend calls the scalar
exponential of the C library, at some ten nanoseconds an element, and small models would spend more time there than in
their matrix products. The polynomial below is as accurate and several times faster: the compiler can vectorise it.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from models.common import on_gpu

_LOG2_E = 1.4426950408889634
# ln 2 in two parts: multiples of the first are exact in float32, the second corrects it
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# exp(f) ≈ 1 + f + f² · P(f) on |f| ≤ ln(2) / 2: the single precision fit of the Cephes library
_EXP_P = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_EXP_MIN, _EXP_MAX = -87.0, 88.0  # beyond these the result leaves the normal float32 numbers
_FLOAT32_MANTISSA_BITS, _FLOAT32_EXPONENT_BIAS = 23, 127


def vectorised_exp(x: mx.array) -> mx.array:
    """exp of float32 `x`, any shape, with a relative error below 2e-7; `x` is first clipped to [-87, 88].

    x = k ln 2 + f: a polynomial gives exp(f), and 2^k is written straight into the exponent bits of a float32.
    """
    x = mx.clip(x, _EXP_MIN, _EXP_MAX)
    k = mx.floor(x * _LOG2_E + 0.5)
    f = (x - k * _LN2_HIGH) - k * _LN2_LOW
    polynomial = f * _EXP_P[0] + _EXP_P[1]
    for coefficient in _EXP_P[2:]:
        polynomial = polynomial * f + coefficient
    power_of_two = ((k.astype(mx.int32) + _FLOAT32_EXPONENT_BIAS) << _FLOAT32_MANTISSA_BITS).view(mx.float32)
    return (polynomial * f * f + f + 1.0) * power_of_two


def _sigmoid(x: mx.array) -> mx.array:
    return 1.0 / (1.0 + vectorised_exp(-x))


@mx.custom_function
def _cpu_silu(x: mx.array) -> mx.array:
    return x * _sigmoid(x)


@_cpu_silu.vjp
def _cpu_silu_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
    # The derivative in closed form, because the bits of 2^k have none.
    sigmoid = _sigmoid(x)
    return cotangent * (sigmoid + x * sigmoid * (1.0 - sigmoid))


@mx.custom_function
def _cpu_softmax(x: mx.array) -> mx.array:
    weights = vectorised_exp(x - mx.max(x, axis=-1, keepdims=True))
    return weights / mx.sum(weights, axis=-1, keepdims=True)


@_cpu_softmax.vjp
def _cpu_softmax_vjp(_: mx.array, cotangent: mx.array, softmax: mx.array) -> mx.array:
    weighted = cotangent * softmax
    return weighted - softmax * mx.sum(weighted, axis=-1, keepdims=True)


def silu(x: mx.array) -> mx.array:
    """x · sigmoid(x), any shape and float dtype; on a CPU computed in float32."""
    if on_gpu():
        return nn.silu(x)
    y: mx.array = _cpu_silu(x.astype(mx.float32))  # type: ignore[assignment]  # its stub says object
    return y.astype(x.dtype)


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """softmax(scale · q kᵀ) v, every token attending to every token; the softmax is computed in float32.

    On a GPU this is MLX's fused kernel. On a CPU the weights `[b, h, t, t]` are formed, as MLX itself does there.

    Args:
        q, k, v: `[b, h, t, head_dim]`, any float dtype.
        scale: factor of the scores.

    Returns:
        `[b, h, t, head_dim]`, in the same dtype.
    """
    if on_gpu():
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    scores = (q * scale) @ k.swapaxes(-1, -2)  # (b h t t)
    weights: mx.array = _cpu_softmax(scores.astype(mx.float32))  # type: ignore[assignment]
    return weights.astype(q.dtype) @ v
