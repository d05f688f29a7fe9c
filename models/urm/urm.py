"""The Universal Reasoning Model, URM (arXiv 2512.14693): one state, and a short convolution within each SwiGLU.

Against TRM there is a single state, updated by the same blocks in all loops. Shapes: b batch, t tokens of the puzzle
embedding and of the puzzle, d hidden size, i inner width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
from pydantic import Field

from models.act import ACTModel, Outputs, State
from models.kernels import silu
from models.layers import Attention, Block, SwiGLU
from models.token_core import TokenConfig, TokenCore


class URMConfig(TokenConfig):
    """The keys of `arch`, with the names of the PyTorch code, and the sizes of the data set."""

    halt_max_steps: int = Field(default=16, ge=1, alias="loops")
    halt_exploration_prob: float = Field(default=0.1, ge=0, le=1)  # fixed there

    H_cycles: int = Field(ge=1)
    L_cycles: int = Field(ge=1)
    num_layers: int = Field(ge=1)

    pos_encodings: Literal["rope"] = "rope"


class TokenConvolution(nn.Module):
    """A convolution over the tokens, of each channel by itself, with a kernel of 2: c_t = w_0 u_{t-1} + w_1 u_t + bias.

    `weight` `[i, 1, 2]` and `bias` `[i]`, both uniform within 1/√2 around 0, PyTorch's default.
    """

    def __init__(self, channels: int, keys: Iterator[mx.array]):
        super().__init__()
        bound = 1 / math.sqrt(2)
        self.weight = mx.random.uniform(-bound, bound, (channels, 1, 2), key=next(keys))
        self.bias = mx.random.uniform(-bound, bound, (channels,), key=next(keys))

    def __call__(self, u: mx.array) -> mx.array:
        """Map `[b, t, i]` to `[b, t, i]`; before the first token there are zeros."""
        weight, bias = self.weight.astype(u.dtype), self.bias.astype(u.dtype)
        previous = mx.pad(u[:, :-1], [(0, 0), (1, 0), (0, 0)])
        return weight[:, 0, 0] * previous + weight[:, 0, 1] * u + bias


class ConvSwiGLU(SwiGLU):
    """SwiGLU with a convolution over the tokens before its last map: down(silu(convolution(silu(gate) · up)))."""

    def __init__(self, hidden_size: int, expansion: float, keys: Iterator[mx.array]):
        super().__init__(hidden_size, expansion, keys)
        self.dwconv = TokenConvolution(self.down_proj.weight.shape[1], keys)

    def __call__(self, x: mx.array) -> mx.array:
        """Map `[b, t, d]` to `[b, t, d]`."""
        return self.down_proj(silu(self.dwconv(self.gated(x))))


class URM_Inner(TokenCore):
    """The core: all blocks, again and again, of which the last L_cycles loops are differentiated."""

    def __init__(self, config: URMConfig, key: mx.array):
        super().__init__(config, key)
        d, keys = config.hidden_size, self._keys
        self.layers = [
            Block(
                Attention(d, config.num_heads, keys, rope_theta=config.rope_theta),
                ConvSwiGLU(d, config.expansion, keys),
                config.rms_norm_eps,
            )
            for _ in range(config.num_layers)
        ]
        self.init_hidden = self.initial_vector()
        self.freeze(keys=["init_hidden"], recurse=False)

    def initial_state(self, rows: int) -> State:
        """Return the initial state, forward dtype `[b, t, d]`: a fixed vector, the same for every token."""
        return {"current_hidden": self.for_each_token(self.init_hidden, rows)}

    def __call__(self, state: State, embeddings: mx.array) -> tuple[State, Outputs]:
        """Take H_cycles · L_cycles loops, the last L_cycles of them with gradient."""
        c = self._config
        hidden = state["current_hidden"]
        for _ in range((c.H_cycles - 1) * c.L_cycles):
            hidden = self._loop(hidden, embeddings)
        hidden = mx.stop_gradient(hidden)
        for _ in range(c.L_cycles):
            hidden = self._loop(hidden, embeddings)
        return {"current_hidden": mx.stop_gradient(hidden)}, self.outputs(hidden)

    def _loop(self, hidden: mx.array, embeddings: mx.array) -> mx.array:
        hidden = hidden + embeddings
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class URM(ACTModel):
    """URM: the core above under adaptive computation time."""

    Config = URMConfig
    Inner = URM_Inner
