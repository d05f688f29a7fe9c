"""The layers of a model: bias-free linear maps, rotary attention, SwiGLU, and the post-norm block of the two.

Parameters are kept in float32 and cast to the dtype of the activations where they are used. Shapes in comments:
b batch, t tokens, d hidden size, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from models.common import truncated_normal
from models.kernels import add_rms_norm, attention, linear, swiglu

SWIGLU_MULTIPLE = 256  # the inner width is rounded up to a multiple of this


class Linear(nn.Module):
    """y = x Wᵀ (+ b): `weight` float32 `[out, in]`, truncated normal with standard deviation 1/sqrt(in).

    Args:
        in_features: size of the last axis of the input.
        out_features: size of the last axis of the output.
        key: random key of the initial weight.
        bias: whether there is a `bias` `[out]`, initially zero.
    """

    def __init__(self, in_features: int, out_features: int, key: mx.array, *, bias: bool = False):
        super().__init__()
        self.weight = truncated_normal((out_features, in_features), 1.0 / math.sqrt(in_features), key)
        if bias:
            self.bias = mx.zeros((out_features,))

    def __call__(self, x: mx.array) -> mx.array:
        """Map `[..., in]` of any float dtype to `[..., out]` of the same dtype."""
        weight = self.weight.astype(x.dtype)
        if "bias" in self:
            return mx.addmm(self.bias.astype(x.dtype), x, weight.T)
        return linear(x, weight)


class Embedding(nn.Module):
    """A table `embedding_weight` float32 `[n, d]`, truncated normal with standard deviation 1/sqrt(d)."""

    def __init__(self, num_embeddings: int, dims: int, key: mx.array, *, dtype: mx.Dtype):
        super().__init__()
        self.embedding_weight = truncated_normal((num_embeddings, dims), 1.0 / math.sqrt(dims), key)
        self._dtype = dtype

    def __call__(self, indices: mx.array) -> mx.array:
        """Look up integer indices `[...]`: `[..., d]` in the dtype given at construction."""
        return self.embedding_weight[indices].astype(self._dtype)

    def table(self) -> mx.array:
        """Return the whole table `[n, d]` in the dtype given at construction."""
        return self.embedding_weight.astype(self._dtype)


class Attention(nn.Module):
    """Full (non-causal) multi-head self-attention, with optional rotary positions (rotate-half over the whole head).

    `qkv_proj` `[3d, d]` yields h query heads, then h key heads, then h value heads; `o_proj` is `[d, d]`.
    """

    def __init__(self, hidden_size: int, num_heads: int, keys: Iterator[mx.array], *, rope_theta: float | None):
        super().__init__()
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size, next(keys))
        self.o_proj = Linear(hidden_size, hidden_size, next(keys))
        self._num_heads = num_heads
        self._rope_theta = rope_theta  # None: positions are not rotated

    def __call__(self, x: mx.array) -> mx.array:
        """Map `[b, t, d]` to `[b, t, d]`."""
        return self.o_proj(attention(x, self.qkv_proj.weight.astype(x.dtype), self._num_heads, self._rope_theta))


def swiglu_width(hidden_size: int, expansion: float) -> int:
    """Compute the inner width of SwiGLU: round(expansion · d · 2/3), rounded up to a multiple of 256."""
    return math.ceil(round(expansion * hidden_size * 2 / 3) / SWIGLU_MULTIPLE) * SWIGLU_MULTIPLE


class SwiGLU(nn.Module):
    """down(silu(gate) · up), where `gate_up_proj` `[2·inter, d]` yields gate first, and `down_proj` is `[d, inter]`."""

    def __init__(self, hidden_size: int, expansion: float, keys: Iterator[mx.array]):
        super().__init__()
        inter = swiglu_width(hidden_size, expansion)
        self.gate_up_proj = Linear(hidden_size, 2 * inter, next(keys))
        self.down_proj = Linear(inter, hidden_size, next(keys))

    def __call__(self, x: mx.array) -> mx.array:
        """Map `[..., d]` to `[..., d]`."""
        return self.down_proj(self.gated(x))

    def gated(self, x: mx.array) -> mx.array:
        """Compute silu(gate) · up, `[..., d]` to `[..., inter]`."""
        return swiglu(x, self.gate_up_proj.weight.astype(x.dtype))


class Block(nn.Module):
    """One post-norm transformer block: x = norm(x + mixer(x)), then x = norm(x + mlp(x)).

    Args:
        mixer: mixes tokens, `[b, t, d]` to `[b, t, d]`, such as `Attention`.
        mlp: works on each token alone, such as `SwiGLU`.
        rms_norm_eps: added to the mean square.
    """

    def __init__(self, mixer: nn.Module, mlp: nn.Module, rms_norm_eps: float):
        super().__init__()
        self.self_attn = mixer  # called as in the PyTorch code, whatever takes the place of attention
        self.mlp = mlp
        self._eps = rms_norm_eps

    def __call__(self, x: mx.array) -> mx.array:
        """Map `[b, t, d]` to `[b, t, d]`."""
        x = add_rms_norm(x, self.self_attn(x), self._eps)
        return add_rms_norm(x, self.mlp(x), self._eps)


class ReasoningModule(nn.Module):
    """A level of a recurrent model: adds the injection to its state, then applies its blocks in order."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = list(layers)

    def __call__(self, hidden: mx.array, injection: mx.array) -> mx.array:
        """Map state `[b, t, d]` and injection `[b, t, d]` to the new state."""
        hidden = hidden + injection
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden
