"""Attention on a GPU, in the form that writes no scores `[b, h, tq, t]` wherever MLX has one.

A fused kernel keeps what the memory of attention needs linear in the tokens. What is said of MLX here was read in
version 0.32.4; docs/devices.md says where.
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx

Form = Literal["fused", "chosen", "scores"]

METAL_HEAD_SIZES = frozenset({64, 72, 80, 96, 128, 192, 256})
# Up to so many queries Metal takes its kernel for generating text, which ends in an error where a gradient is traced.
METAL_FEW_QUERIES = 8


def attention_form(device: str, head_size: int, queries: int) -> Form:
    """Choose how attention is computed. Whether a gradient is being traced is not known, and makes no difference.

    Args:
        device: "metal", "cuda" or "cpu".
        head_size: last axis of queries, keys and values.
        queries: number of tokens that attend.

    Returns:
        "fused": MLX's fused kernel, demanded, which is an error where there is none. On Metal it serves forward and
        backward; left to itself, MLX takes scores for head sizes 192 and 256 where no gradient is traced, for speed.
        "chosen": what MLX chooses. CUDA has fused kernels in half precision alone, and demanding one in float32 would
        be an error; the CPU and other head sizes on Metal have none.
        "scores": queries, keys, scores and softmax one after another.
    """
    if device != "metal" or head_size not in METAL_HEAD_SIZES:
        return "chosen"
    return "fused" if queries > METAL_FEW_QUERIES else "scores"


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float, form: Form) -> mx.array:
    """Compute softmax(scale · q kᵀ) v of queries, keys and values `[b, h, t, head_size]`."""
    if form == "scores":
        scores = (scale * q) @ k.swapaxes(-1, -2)  # (b h tq t)
        return mx.softmax(scores, axis=-1, precise=True) @ v
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, force_fused=form == "fused")
