"""Layers against plain numpy: a wrong head layout or rotation gives wrong numbers, not an error."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from models.common import random_keys
from models.layers import Attention, Block, Linear, SwiGLU, add_rms_norm, swiglu_width


def rotate(x: np.ndarray, theta: float) -> np.ndarray:
    """Rotate-half positions on (heads, t, head_dim), as the paper's code writes it."""
    _, t, dim = x.shape
    frequencies = theta ** -(np.arange(0, dim, 2) / dim)
    angles = np.tile(np.outer(np.arange(t), frequencies), (1, 2))
    half = np.concatenate([-x[..., dim // 2 :], x[..., : dim // 2]], axis=-1)
    return x * np.cos(angles) + half * np.sin(angles)


def attention(layer: Attention, x: np.ndarray, heads: int, theta: float | None) -> np.ndarray:
    """One example (t, d), in float64."""
    t, d = x.shape
    qkv = (x @ np.array(layer.qkv_proj.weight, np.float64).T).reshape(t, 3, heads, d // heads).transpose(1, 2, 0, 3)
    q, k, v = qkv
    if theta is not None:
        q, k = rotate(q, theta), rotate(k, theta)
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(d // heads)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).transpose(1, 0, 2).reshape(t, d) @ np.array(layer.o_proj.weight, np.float64).T


@pytest.mark.parametrize("theta", [None, 10000.0, 100.0])
def test_attention_follows_its_definition(theta: float | None) -> None:
    layer = Attention(24, 3, random_keys(mx.random.key(0)), rope_theta=theta)
    x = np.random.default_rng(0).normal(size=(2, 7, 24))
    out = np.array(layer(mx.array(x, mx.float32)))
    for row in range(2):
        np.testing.assert_allclose(out[row], attention(layer, x[row], 3, theta), rtol=0, atol=2e-6)


def test_swiglu_puts_the_gate_first() -> None:
    layer = SwiGLU(8, 4, random_keys(mx.random.key(0)))
    x = np.random.default_rng(0).normal(size=(5, 8))
    gate, up = np.split(x @ np.array(layer.gate_up_proj.weight, np.float64).T, 2, axis=-1)
    expected = (gate / (1 + np.exp(-gate)) * up) @ np.array(layer.down_proj.weight, np.float64).T
    np.testing.assert_allclose(np.array(layer(mx.array(x, mx.float32))), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("hidden", "expansion", "width"),
    [(512, 4, 1536), (32, 4, 256), (96, 4, 256), (97, 4, 512), (128, 2, 256), (3, 1, 256)],
)
def test_swiglu_width_is_rounded_up_to_256(hidden: int, expansion: float, width: int) -> None:
    assert swiglu_width(hidden, expansion) == width


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_rms_norm_is_computed_in_float32(dtype: Any) -> None:
    # The sum of these squares would overflow float16 and lose digits in bfloat16.
    x = mx.array(np.random.default_rng(0).normal(size=(4, 512)) * 300).astype(dtype)
    wide = np.array(x.astype(mx.float32), np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
    out = add_rms_norm(x, mx.zeros_like(x), 1e-5)
    assert out.dtype == dtype
    tolerance = {mx.float32: 1e-5, mx.bfloat16: 2**-8, mx.float16: 2**-11}[dtype] * 4
    np.testing.assert_allclose(np.array(out.astype(mx.float32)), expected, rtol=0, atol=tolerance)


def test_block_normalises_after_each_sum() -> None:
    keys = random_keys(mx.random.key(0))
    block = Block(Attention(16, 2, keys, rope_theta=10000.0), SwiGLU(16, 4, keys), 1e-5)
    x = mx.random.normal((2, 5, 16), key=mx.random.key(1))
    middle = add_rms_norm(x, block.self_attn(x), 1e-5)
    np.testing.assert_allclose(np.array(block(x)), np.array(add_rms_norm(middle, block.mlp(middle), 1e-5)), atol=1e-6)


def test_linear_casts_its_weight_to_the_activations() -> None:
    linear = Linear(8, 3, mx.random.key(0), bias=True)
    linear.bias = mx.array([1.0, 2.0, 3.0])
    x = mx.random.normal((4, 8), key=mx.random.key(1))
    assert linear(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    np.testing.assert_allclose(np.array(linear(x)), np.array(x) @ np.array(linear.weight).T + [1, 2, 3], atol=1e-5)
