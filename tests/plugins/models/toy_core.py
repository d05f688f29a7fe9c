"""A toy architecture: one state, one block applied a few times, no Q-continue. The example of docs/adding-a-model.md.

Shapes: b batch, s tokens of a puzzle, d hidden size, v vocabulary.
"""

from __future__ import annotations

import math

import mlx.core as mx
from pydantic import Field

from models.act import ACTConfig, ACTModel, Core, Outputs, State
from models.common import FORWARD_DTYPES, random_keys
from models.layers import Attention, Block, Embedding, Linear, SwiGLU


class ToyConfig(ACTConfig):
    """The keys of config/arch/toy.yaml below `arch` that are the toy's own."""

    hidden_size: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    cycles: int = Field(default=2, ge=1)


class ToyCore(Core):
    """Adds the puzzle to its memory and applies the block, `cycles` times in an outer step."""

    def __init__(self, config: ToyConfig, key: mx.array):
        super().__init__(config, key)
        self._dtype = FORWARD_DTYPES[config.forward_dtype]
        keys, d = random_keys(key), config.hidden_size
        self.embed_tokens = Embedding(config.vocab_size, d, next(keys), dtype=self._dtype)
        self.block = Block(Attention(d, config.num_heads, keys, rope_theta=10000.0), SwiGLU(d, 2, keys), 1e-5)
        self.lm_head = Linear(d, config.vocab_size, next(keys))
        self.q_head = Linear(d, 1, next(keys), bias=True)

    def initial_state(self, rows: int) -> State:
        """Begin with an empty memory, `[b, s, d]`."""
        return {"memory": mx.zeros((rows, self._config.seq_len, self._config.hidden_size), self._dtype)}

    def input_embeddings(self, data: dict[str, mx.array], puzzle_rows: mx.array | None) -> mx.array:
        """Embed the tokens, `[b, s, d]`. There is no puzzle embedding, so `puzzle_rows` is None."""
        return math.sqrt(self._config.hidden_size) * self.embed_tokens(data["inputs"])

    def __call__(self, state: State, embeddings: mx.array) -> tuple[State, Outputs]:
        """Apply the block, and differentiate through all cycles of this outer step."""
        memory = state["memory"]
        for _ in range(self._config.cycles):
            memory = self.block(memory + embeddings)
        q_halt = self.q_head(memory[:, 0].astype(mx.float32))[:, 0]  # (b)
        return {"memory": mx.stop_gradient(memory)}, {"logits": self.lm_head(memory), "q_halt_logits": q_halt}


class ToyModel(ACTModel):
    """The core above under adaptive computation time."""

    Config = ToyConfig
    Inner = ToyCore
