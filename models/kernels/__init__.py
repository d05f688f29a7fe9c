"""The functions that take most of a model's time, in plain MLX: what a Mac or another GPU runs.

On a Linux CPU the loops of `native/` compute the same in float32, see `cpu.py`, on the streams of `streams.py`. No
other package of `models` depends on the device.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from models.kernels import cpu, fused
from models.kernels.streams import EvenShares as EvenShares
from models.kernels.streams import device_kind as device_kind
from models.kernels.streams import map_rows as map_rows
from models.kernels.streams import on_gpu as on_gpu
from models.kernels.streams import plain_forms as plain_forms
from models.kernels.streams import takes_plain_forms


def _runs_natively(*arrays: mx.array) -> bool:
    float32 = all(array.dtype == mx.float32 for array in arrays)
    return float32 and not takes_plain_forms() and cpu.native() is not None


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """Map `[..., in]` by a weight `[out, in]` of the same dtype to `[..., out]`: x Wᵀ."""
    if _runs_natively(x, weight):
        return cpu.linear(x, weight)
    return x @ weight.T


def swiglu(x: mx.array, gate_up_weight: mx.array) -> mx.array:
    """Compute silu(x Gᵀ) · x Uᵀ, where `gate_up_weight` `[2 · inter, d]` holds G above U.

    Args:
        x: `[..., d]`, any float dtype.
        gate_up_weight: in the same dtype.

    Returns:
        `[..., inter]`, in the same dtype.
    """
    if _runs_natively(x, gate_up_weight):
        return cpu.swiglu(x, gate_up_weight)
    gate, up = mx.split(x @ gate_up_weight.T, 2, axis=-1)
    return nn.silu(gate) * up


def silu(x: mx.array) -> mx.array:
    """Compute x · sigmoid(x) of any shape; same dtype."""
    return cpu.silu(x) if _runs_natively(x) else nn.silu(x)


def attention(x: mx.array, qkv_weight: mx.array, num_heads: int, rope_theta: float | None) -> mx.array:
    """Compute softmax(q kᵀ / sqrt(head size)) v in every head, every token attending to every token.

    Args:
        x: `[b, t, d]`, any float dtype.
        qkv_weight: `[3 · d, d]` in the same dtype: of h query heads, then h key heads, then h value heads.
        num_heads: h.
        rope_theta: base of the rotary positions by which queries and keys are rotated (rotate-half over the whole
            head); None: they are not.

    Returns:
        `[b, t, d]`, in the same dtype. The softmax is computed in float32.
    """
    b, t, d = x.shape
    head_size = d // num_heads
    if head_size * num_heads != d or (rope_theta is not None and head_size % 2):
        raise ValueError(f"{num_heads} heads of {d}: num_heads must divide it, with rotary positions evenly")
    if _runs_natively(x, qkv_weight):
        return cpu.attention(linear(x, qkv_weight), num_heads, rope_theta)
    # Three products, not one that is split: each is contiguous, as rope on Metal needs it to work without a copy.
    products = [linear(x, weight) for weight in mx.split(qkv_weight, 3)]  # (b t d) each
    q, k, v = (product.reshape(b, t, num_heads, head_size).transpose(0, 2, 1, 3) for product in products)
    if rope_theta is not None:
        q, k = (mx.fast.rope(a, head_size, traditional=False, base=rope_theta, scale=1.0, offset=0) for a in (q, k))
    form = fused.attention_form(device_kind(), head_size, t)
    out = fused.attention(q, k, v, 1.0 / math.sqrt(head_size), form)  # (b h t head_size)
    return out.transpose(0, 2, 1, 3).reshape(b, t, d)


def add_rms_norm(x: mx.array, y: mx.array, eps: float) -> mx.array:
    """Compute z / sqrt(mean(z²) + eps) of z = x + y, over the last axis in float32, without a weight; same dtype."""
    if _runs_natively(x, y) and x.shape == y.shape:
        return cpu.add_rms_norm(x, y, eps)
    return mx.fast.rms_norm(x + y, None, eps)


def adam_atan2(gradient: mx.array, parameter: mx.array, m: mx.array, v: mx.array, factors: mx.array) -> list[mx.array]:
    """Update a parameter and its moments.

    Args:
        gradient: float32; what it holds is not used where both shares are 0.
        parameter: float32, of the same shape.
        m: first moment, likewise.
        v: second moment, likewise.
        factors: float32 `[5]`: `keep`, `rate`, `correction`, `share1`, `share2`.

    Returns:
        parameter · keep - rate · atan2(m, sqrt(v · correction)), m and v, where m and v have first moved to the
        gradient and to its square by their shares of the way.
    """
    if _runs_natively(parameter):
        return cpu.adam_atan2(gradient, parameter, m, v, factors)
    keep, rate, correction, share1, share2 = (factors[i] for i in range(5))
    gradient = mx.where(share1 + share2 > 0, gradient, 0.0)  # a NaN would survive the product with zero
    m = m + share1 * (gradient - m)
    v = v + share2 * (mx.square(gradient) - v)
    return [parameter * keep - rate * mx.arctan2(m, mx.sqrt(v * correction)), m, v]
