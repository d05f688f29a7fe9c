"""The functions that take most of a model's time, in plain MLX: what a Mac or another GPU runs.

A Linux CPU computes the same in the forms of `cpu.py`, which its compiler vectorises, on the streams of `streams.py`.
No other package of `models` depends on the device.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from models.kernels import cpu, fused
from models.kernels.streams import EvenShares as EvenShares
from models.kernels.streams import device_kind as device_kind
from models.kernels.streams import map_rows as map_rows
from models.kernels.streams import on_gpu as on_gpu
from models.kernels.streams import plain_forms as plain_forms
from models.kernels.streams import takes_plain_forms


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """Map `[..., in]` by a weight `[out, in]` of the same dtype to `[..., out]`: x Wᵀ."""
    if takes_plain_forms():
        return x @ weight.T
    return cpu.linear(x, weight)


def swiglu(x: mx.array, gate_up_weight: mx.array) -> mx.array:
    """Compute silu(x Gᵀ) · x Uᵀ, where `gate_up_weight` `[2 · inter, d]` holds G above U.

    Args:
        x: `[..., d]`, any float dtype.
        gate_up_weight: in the same dtype.

    Returns:
        `[..., inter]`, in the same dtype.
    """
    if takes_plain_forms():
        gate, up = mx.split(x @ gate_up_weight.T, 2, axis=-1)
        return nn.silu(gate) * up
    return cpu.swiglu(x, gate_up_weight)


def silu(x: mx.array) -> mx.array:
    """Compute x · sigmoid(x) of any shape; same dtype."""
    if takes_plain_forms():
        return nn.silu(x)
    return cpu.silu(x)


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Compute softmax(scale · q kᵀ) v, every token attending to every token; the softmax is computed in float32.

    Args:
        q: `[b, h, tq, head_dim]`, any float dtype.
        k: `[b, h, t, head_dim]`, same dtype.
        v: `[b, h, t, head_dim]`, same dtype.
        scale: factor of the scores, positive.

    Returns:
        `[b, h, tq, head_dim]`, in the same dtype.
    """
    if takes_plain_forms():
        return fused.attention(q, k, v, scale, fused.attention_form(device_kind(), q.shape[-1], q.shape[-2]))
    return cpu.attention(q, k, v, scale)


def rms_norm(x: mx.array, eps: float) -> mx.array:
    """Compute x / sqrt(mean(x²) + eps) over the last axis in float32, without a learned weight; same dtype."""
    if takes_plain_forms():
        return mx.fast.rms_norm(x, None, eps)
    return cpu.rms_norm(x, eps)


def arctan2_of_square(y: mx.array, square: mx.array) -> mx.array:
    """Compute atan2(y, sqrt(square)) of float32 arrays of one shape; atan2(0, 0) = 0."""
    if takes_plain_forms():
        return mx.arctan2(y, mx.sqrt(square))
    return cpu.arctan2_of_square(y, square)
