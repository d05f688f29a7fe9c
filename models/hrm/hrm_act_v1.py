"""The Hierarchical Reasoning Model with adaptive computation time (arXiv 2506.21734, section 2; "the paper").

Two recurrent modules share the work: L is updated L_cycles times for each of the H_cycles updates of H. The wrapper in
models/act.py lets every row of the batch take up to halt_max_steps outer steps. Shapes: b batch, s tokens of a puzzle,
p tokens of the puzzle embedding, t = p + s, d hidden size, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from pydantic import Field, model_validator

from models.act import ACTConfig, ACTModel, Core, Outputs, State
from models.common import FORWARD_DTYPES, random_keys, truncated_normal
from models.layers import Attention, Block, Embedding, Linear, SwiGLU
from models.loading import checked_options, load
from models.sparse_embedding import SparseEmbedding

Q_HEAD_INITIAL_BIAS = -5.0  # both Q values begin near 0, and equal, so that no row halts at first but for its limit


class HierarchicalReasoningModel_ACTV1Config(ACTConfig):
    """The keys of `arch`, with the names of the PyTorch code, and the sizes of the data set."""

    puzzle_emb_ndim: int = Field(ge=0)  # 0: no puzzle embedding

    H_cycles: int = Field(ge=1)
    L_cycles: int = Field(ge=1)
    H_layers: int = Field(ge=1)
    L_layers: int = Field(ge=1)

    hidden_size: int = Field(ge=1)
    expansion: float = Field(gt=0)
    num_heads: int = Field(ge=1)
    mixer: dict[str, Any] | None = None  # what mixes tokens in a block: `name` and options; null: rotary attention
    pos_encodings: Literal["rope", "learned"]
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)

    @model_validator(mode="after")
    def _heads_fit(self) -> HierarchicalReasoningModel_ACTV1Config:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide hidden_size = {self.hidden_size}; "
                "choose a num_heads that divides it"
            )
        head_dim = self.hidden_size // self.num_heads
        if head_dim % 2:
            raise ValueError(
                f"hidden_size / num_heads = {head_dim} is odd, and rotary positions pair the halves of a head; "
                "choose a num_heads that leaves an even quotient"
            )
        return self

    @property
    def puzzle_emb_len(self) -> int:
        """Number of tokens of the puzzle embedding, before the puzzle's: ceil(puzzle_emb_ndim / hidden_size)."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)


class ReasoningModule(nn.Module):
    """One of the two levels: adds the injection to its state, then applies its blocks in order."""

    def __init__(self, config: HierarchicalReasoningModel_ACTV1Config, num_layers: int, keys: Iterator[mx.array]):
        super().__init__()
        self.layers = [
            Block(_mixer(config, keys), SwiGLU(config.hidden_size, config.expansion, keys), config.rms_norm_eps)
            for _ in range(num_layers)
        ]

    def __call__(self, hidden: mx.array, injection: mx.array) -> mx.array:
        """Map state `[b, t, d]` and injection `[b, t, d]` to the new state."""
        hidden = hidden + injection
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def _mixer(config: HierarchicalReasoningModel_ACTV1Config, keys: Iterator[mx.array]) -> nn.Module:
    """Make what mixes tokens in a block: attention, or `Class(config, keys, **options)` of the class that is named."""
    if config.mixer is None:
        theta = config.rope_theta if config.pos_encodings == "rope" else None
        return Attention(config.hidden_size, config.num_heads, keys, rope_theta=theta)
    options = dict(config.mixer)
    mixer = load(str(options.pop("name", "")), "arch.mixer.name", "my_mixer@MyMixer")
    return mixer(config, keys, **checked_options(mixer, options, "arch.mixer", given=2))


class HierarchicalReasoningModel_ACTV1_Inner(Core):
    """The core: input network, the two-level recurrence with its one-step gradient, output and Q heads."""

    def __init__(self, config: HierarchicalReasoningModel_ACTV1Config, key: mx.array):
        super().__init__(config, key)
        keys = random_keys(key)
        self._dtype = FORWARD_DTYPES[config.forward_dtype]
        self._num_tokens = config.puzzle_emb_len + config.seq_len  # t

        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, next(keys), dtype=self._dtype)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, next(keys))
        self.q_head = Linear(config.hidden_size, 2, next(keys), bias=True)
        self.q_head.weight = mx.zeros_like(self.q_head.weight)
        self.q_head.bias = mx.full((2,), Q_HEAD_INITIAL_BIAS)
        if config.puzzle_emb_ndim > 0:
            self.puzzle_emb = SparseEmbedding(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        if config.pos_encodings == "learned":
            self.embed_pos = Embedding(self._num_tokens, config.hidden_size, next(keys), dtype=self._dtype)
        self.H_level = ReasoningModule(config, config.H_layers, keys)
        self.L_level = ReasoningModule(config, config.L_layers, keys)

        self.H_init = truncated_normal((config.hidden_size,), 1.0, next(keys)).astype(self._dtype)
        self.L_init = truncated_normal((config.hidden_size,), 1.0, next(keys)).astype(self._dtype)
        self.freeze(keys=["H_init", "L_init"], recurse=False)

    def initial_state(self, rows: int) -> State:
        """Return z_H⁰ and z_L⁰, forward dtype `[b, t, d]`: fixed vectors, the same for every token."""
        shape = (rows, self._num_tokens, self._config.hidden_size)
        return {"z_H": mx.broadcast_to(self.H_init, shape), "z_L": mx.broadcast_to(self.L_init, shape)}

    def input_embeddings(self, data: dict[str, mx.array], puzzle_rows: mx.array | None) -> mx.array:
        """Compute x̃ = f_I(x): token embeddings `[b, s, d]` behind the puzzle's p tokens, with positions if learned."""
        c = self._config
        embedding = self.embed_tokens(data["inputs"])  # (b s d)
        if puzzle_rows is not None:
            padding = c.puzzle_emb_len * c.hidden_size - c.puzzle_emb_ndim
            puzzle = mx.pad(puzzle_rows.astype(embedding.dtype), [(0, 0), (0, padding)])
            puzzle = puzzle.reshape(-1, c.puzzle_emb_len, c.hidden_size)  # (b p d)
            embedding = mx.concatenate([puzzle, embedding], axis=1)  # (b t d)
        if c.pos_encodings == "learned":
            embedding = math.sqrt(0.5) * (embedding + self.embed_pos.table())  # keeps the variance of one summand
        return math.sqrt(c.hidden_size) * embedding

    def __call__(self, state: State, embeddings: mx.array) -> tuple[State, Outputs]:
        """Update z_L L_cycles times for each of H_cycles updates of z_H (paper, section 2).

        The last update of each is differentiated, all others are not: the 1-step gradient. As in the published code,
        H is given the z_L that has just been updated, and the Q head reads the first token.
        """
        c = self._config
        z_H, z_L = state["z_H"], state["z_L"]
        for _ in range(c.H_cycles - 1):
            for _ in range(c.L_cycles):
                z_L = self.L_level(z_L, z_H + embeddings)
            z_H = self.H_level(z_H, z_L)
        for _ in range(c.L_cycles - 1):
            z_L = self.L_level(z_L, z_H + embeddings)

        z_H, z_L = mx.stop_gradient(z_H), mx.stop_gradient(z_L)
        z_L = self.L_level(z_L, z_H + embeddings)
        z_H = self.H_level(z_H, z_L)

        logits = self.lm_head(z_H[:, c.puzzle_emb_len :])  # ŷ = f_O(z_H)
        q = self.q_head(z_H[:, 0].astype(mx.float32))  # (b 2)
        outputs = {"logits": logits, "q_halt_logits": q[:, 0], "q_continue_logits": q[:, 1]}
        return {"z_H": mx.stop_gradient(z_H), "z_L": mx.stop_gradient(z_L)}, outputs

    def halts(self, outputs: Outputs) -> mx.array:
        """Return where Q̂_halt > Q̂_continue."""
        return outputs["q_halt_logits"] > outputs["q_continue_logits"]  # as σ keeps the order

    def target_q_continue(self, state: State, embeddings: mx.array, last: mx.array) -> mx.array:
        """Compute Ĝ_continue from the Q values of a second pass, on the state that the first has reached."""
        _, outputs = self(state, embeddings)
        q_halt, q_continue = outputs["q_halt_logits"], outputs["q_continue_logits"]
        return mx.sigmoid(mx.where(last, q_halt, mx.maximum(q_halt, q_continue)))


class HierarchicalReasoningModel_ACTV1(ACTModel):
    """HRM: the core above under adaptive computation time."""

    Config = HierarchicalReasoningModel_ACTV1Config
    Inner = HierarchicalReasoningModel_ACTV1_Inner
