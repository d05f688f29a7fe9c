"""The Tiny Recursive Model, TRM (arXiv 2510.04871): one small network updates the answer z_H and the latent z_L.

Called y and z in the paper. Against HRM there is no second network; all updates of the last cycle are differentiated;
a row halts by Q-halt alone, without the second pass for Q-continue. Shapes: b batch, t tokens of the puzzle embedding
and of the puzzle, d hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
from pydantic import Field, model_validator

from models.act import ACTModel, Outputs, State
from models.kernels import add_rms_norm
from models.layers import Attention, Block, ReasoningModule, SwiGLU
from models.token_core import TokenConfig, TokenCore


class TinyRecursiveReasoningModel_ACTV1Config(TokenConfig):
    """The keys of `arch`, with the names of the PyTorch code, and the sizes of the data set."""

    H_cycles: int = Field(ge=1)
    L_cycles: int = Field(ge=1)
    H_layers: int = Field(default=0, ge=0)  # ignored, as there: there is one network
    L_layers: int = Field(ge=1)

    pos_encodings: Literal["rope", "learned", "none"]
    mlp_t: bool = False
    puzzle_emb_len: int = Field(default=16, ge=0)  # 0: as many tokens as puzzle_emb_ndim needs
    no_ACT_continue: bool = True

    @model_validator(mode="after")
    def _is_possible(self) -> TinyRecursiveReasoningModel_ACTV1Config:
        if not self.no_ACT_continue:
            raise ValueError("no_ACT_continue = False has no working definition in the PyTorch code; leave it True")
        if self.num_puzzle_tokens * self.hidden_size < self.puzzle_emb_ndim:
            raise ValueError(
                f"puzzle_emb_len = {self.puzzle_emb_len} tokens of hidden_size = {self.hidden_size} don't hold "
                f"puzzle_emb_ndim = {self.puzzle_emb_ndim}; raise puzzle_emb_len, or set it to 0"
            )
        return self

    @property
    def num_puzzle_tokens(self) -> int:
        """Number of tokens of the puzzle embedding, p: puzzle_emb_len, and none without a puzzle embedding."""
        if self.puzzle_emb_ndim == 0:  # where the PyTorch code fails unless puzzle_emb_len is 0 too
            return 0
        return self.puzzle_emb_len or super().num_puzzle_tokens


class TokenMLPBlock(nn.Module):
    """A block with an MLP over the tokens in place of attention (paper, section 4.5).

    Its norm runs over the tokens as well, within each of the d channels.
    """

    def __init__(self, config: TinyRecursiveReasoningModel_ACTV1Config, keys: Iterator[mx.array]):
        super().__init__()
        self.mlp_t = SwiGLU(config.num_tokens, config.expansion, keys)
        self.mlp = SwiGLU(config.hidden_size, config.expansion, keys)
        self._eps = config.rms_norm_eps

    def __call__(self, x: mx.array) -> mx.array:
        """Map `[b, t, d]` to `[b, t, d]`."""
        channels = x.swapaxes(1, 2)  # (b d t)
        x = add_rms_norm(channels, self.mlp_t(channels), self._eps).swapaxes(1, 2)
        return add_rms_norm(x, self.mlp(x), self._eps)


def _block(config: TinyRecursiveReasoningModel_ACTV1Config, keys: Iterator[mx.array]) -> nn.Module:
    if config.mlp_t:
        return TokenMLPBlock(config, keys)
    theta = config.rope_theta if config.pos_encodings == "rope" else None
    attention = Attention(config.hidden_size, config.num_heads, keys, rope_theta=theta)
    return Block(attention, SwiGLU(config.hidden_size, config.expansion, keys), config.rms_norm_eps)


class TinyRecursiveReasoningModel_ACTV1_Inner(TokenCore):
    """The core: the recursion of one network, of which the last cycle is differentiated."""

    def __init__(self, config: TinyRecursiveReasoningModel_ACTV1Config, key: mx.array):
        super().__init__(config, key)
        self.L_level = ReasoningModule([_block(config, self._keys) for _ in range(config.L_layers)])
        self.H_init = self.initial_vector()
        self.L_init = self.initial_vector()
        self.freeze(keys=["H_init", "L_init"], recurse=False)

    def initial_state(self, rows: int) -> State:
        """Return z_H⁰ and z_L⁰, forward dtype `[b, t, d]`: fixed vectors, the same for every token."""
        return {"z_H": self.for_each_token(self.H_init, rows), "z_L": self.for_each_token(self.L_init, rows)}

    def __call__(self, state: State, embeddings: mx.array) -> tuple[State, Outputs]:
        """Update z_L L_cycles times and then z_H, H_cycles times over (paper, section 4, "latent recursion").

        Only the last of the H_cycles is differentiated, but all of it.
        """
        z_H, z_L = state["z_H"], state["z_L"]
        for _ in range(self._config.H_cycles - 1):
            z_H, z_L = self._cycle(z_H, z_L, embeddings)
        z_H, z_L = self._cycle(mx.stop_gradient(z_H), mx.stop_gradient(z_L), embeddings)
        return {"z_H": mx.stop_gradient(z_H), "z_L": mx.stop_gradient(z_L)}, self.outputs(z_H)

    def _cycle(self, z_H: mx.array, z_L: mx.array, embeddings: mx.array) -> tuple[mx.array, mx.array]:
        for _ in range(self._config.L_cycles):
            z_L = self.L_level(z_L, z_H + embeddings)
        return self.L_level(z_H, z_L), z_L


class TinyRecursiveReasoningModel_ACTV1(ACTModel):
    """TRM: the core above under adaptive computation time."""

    Config = TinyRecursiveReasoningModel_ACTV1Config
    Inner = TinyRecursiveReasoningModel_ACTV1_Inner
