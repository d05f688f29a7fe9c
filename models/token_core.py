"""Input and output of the cores whose state has a vector for each token: embeddings, heads, and the keys for them.

The puzzle embedding becomes p tokens before the s tokens of the puzzle. Shapes: b batch, t = p + s, d hidden size,
v vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
from pydantic import Field, model_validator

from models.act import ACTConfig, Core, Outputs
from models.common import FORWARD_DTYPES, truncated_normal
from models.layers import Embedding, Linear
from models.sparse_embedding import SparseEmbedding

Q_HEAD_INITIAL_BIAS = -5.0  # both Q values begin near 0, and equal, so that no row halts at first but for its limit


class TokenConfig(ACTConfig):
    """The keys of `arch` that such cores have in common, with the names of the PyTorch code."""

    puzzle_emb_ndim: int = Field(ge=0)  # 0: no puzzle embedding
    hidden_size: int = Field(ge=1)
    expansion: float = Field(gt=0)
    num_heads: int = Field(ge=1)
    pos_encodings: str
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> TokenConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide hidden_size = {self.hidden_size}; "
                "choose a num_heads that divides it"
            )
        head_dim = self.hidden_size // self.num_heads
        if self.pos_encodings == "rope" and head_dim % 2:
            raise ValueError(
                f"hidden_size / num_heads = {head_dim} is odd, and rotary positions pair the halves of a head; "
                "choose a num_heads that leaves an even quotient"
            )
        return self

    @property
    def num_puzzle_tokens(self) -> int:
        """Number of tokens of the puzzle embedding, before the puzzle's: p = ceil(puzzle_emb_ndim / hidden_size)."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the state: t = p + s."""
        return self.num_puzzle_tokens + self.seq_len


class TokenCore(Core):
    """A core whose state has a vector for each token.

    Subclasses make the layers between input and output, and with them the outer step.
    """

    def __init__(self, config: Any, key: mx.array):
        super().__init__(config, key)
        self._dtype = FORWARD_DTYPES[config.forward_dtype]
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, next(self._keys), dtype=self._dtype)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, next(self._keys))
        self.q_head = Linear(config.hidden_size, 2, next(self._keys), bias=True)
        self.q_head.weight = mx.zeros_like(self.q_head.weight)
        self.q_head.bias = mx.full((2,), Q_HEAD_INITIAL_BIAS)
        if config.puzzle_emb_ndim > 0:
            self.puzzle_emb = SparseEmbedding(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        if config.pos_encodings == "learned":
            self.embed_pos = Embedding(config.num_tokens, config.hidden_size, next(self._keys), dtype=self._dtype)

    def initial_vector(self) -> mx.array:
        """Draw the fixed vector in which every token of a state begins, forward dtype `[d]`. Freeze it."""
        return truncated_normal((self._config.hidden_size,), 1.0, next(self._keys)).astype(self._dtype)

    def for_each_token(self, vector: mx.array, rows: int) -> mx.array:
        """Repeat a vector `[d]` for each row and token: `[rows, t, d]`."""
        return mx.broadcast_to(vector, (rows, self._config.num_tokens, self._config.hidden_size))

    def input_embeddings(self, data: dict[str, mx.array], puzzle_rows: mx.array | None) -> mx.array:
        """Embed the tokens, `[b, s, d]`, behind the puzzle's p tokens; with positions if these are learned."""
        c = self._config
        embedding = self.embed_tokens(data["inputs"])  # (b s d)
        if puzzle_rows is not None:
            padding = c.num_puzzle_tokens * c.hidden_size - c.puzzle_emb_ndim
            puzzle = mx.pad(puzzle_rows.astype(embedding.dtype), [(0, 0), (0, padding)])
            puzzle = puzzle.reshape(-1, c.num_puzzle_tokens, c.hidden_size)  # (b p d)
            embedding = mx.concatenate([puzzle, embedding], axis=1)  # (b t d)
        if c.pos_encodings == "learned":
            embedding = math.sqrt(0.5) * (embedding + self.embed_pos.table())  # keeps the variance of one summand
        return math.sqrt(c.hidden_size) * embedding

    def outputs(self, hidden: mx.array) -> Outputs:
        """Compute the outputs of a state `[b, t, d]`: logits of the puzzle's tokens, Q values from the first token.

        Returns:
            `logits` `[b, s, v]` in the forward dtype; `q_halt_logits` and `q_continue_logits` float32 `[b]`.
        """
        logits = self.lm_head(hidden[:, self._config.num_puzzle_tokens :])
        q = self.q_head(hidden[:, 0].astype(mx.float32))  # (b 2)
        return {"logits": logits, "q_halt_logits": q[:, 0], "q_continue_logits": q[:, 1]}
