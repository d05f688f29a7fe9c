"""The Hierarchical Reasoning Model with adaptive computation time (arXiv 2506.21734, section 2).

Two recurrent modules share the hidden state: L is updated L_cycles times for each of the H_cycles updates of H. Around
this inner model, the ACT wrapper lets every row of the batch think for up to halt_max_steps outer steps and then takes
the next puzzle into its place. Shapes: b batch, s tokens of a puzzle, p puzzle embedding tokens, t = p + s, d hidden
size, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, TypedDict

import mlx.core as mx
import mlx.nn as nn
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.common import FORWARD_DTYPES, map_rows, random_keys, truncated_normal
from models.layers import Block, Embedding, Linear
from models.sparse_embedding import SparseEmbedding

Q_HEAD_INITIAL_BIAS = -5.0  # both Q values start near zero probability, so that early training never halts

# Bounds far above any experiment (published: 512 wide, 4 layers a level, 2 · 2 cycles, 16 outer steps). What exceeds
# them is a slip, or a file from elsewhere, and would end in a crash or a full memory instead of a message.
MAX_WIDTH = 16_384  # of the hidden state and the puzzle embedding
MAX_HEADS = 1024
MAX_EXPANSION = 64.0
MAX_LAYERS = 256  # of one level
MAX_CYCLES = 256
MAX_BLOCKS = 2048  # applied one after the other in one outer step, all of them nodes of one graph; published: 24
MAX_OUTER_STEPS = 4096


class Carry(TypedDict):
    """What a row of the batch keeps from one outer step to the next.

    `z_H`, `z_L`: forward dtype `[b, t, d]`; `steps`: int32 `[b]`, outer steps taken; `halted`: bool `[b]`;
    `current_data`: the int32 arrays `inputs` `[b, s]`, `labels` `[b, s]`, `puzzle_identifiers` `[b]` being worked on.
    """

    z_H: mx.array
    z_L: mx.array
    steps: mx.array
    halted: mx.array
    current_data: dict[str, mx.array]


class HierarchicalReasoningModel_ACTV1Config(BaseModel):
    """Everything that determines shape and behaviour of the model. Field names are those of the paper's code."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    seq_len: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    num_puzzle_identifiers: int = Field(ge=1)
    puzzle_emb_ndim: int = Field(ge=0, le=MAX_WIDTH)  # 0: no puzzle embedding

    H_cycles: int = Field(ge=1, le=MAX_CYCLES)
    L_cycles: int = Field(ge=1, le=MAX_CYCLES)
    H_layers: int = Field(ge=1, le=MAX_LAYERS)
    L_layers: int = Field(ge=1, le=MAX_LAYERS)

    hidden_size: int = Field(ge=1, le=MAX_WIDTH)
    expansion: float = Field(gt=0, le=MAX_EXPANSION)
    num_heads: int = Field(ge=1, le=MAX_HEADS)
    pos_encodings: Literal["rope", "learned"]
    rms_norm_eps: float = Field(default=1e-5, gt=0, le=1)
    rope_theta: float = Field(default=10000.0, gt=0, le=1e12)

    halt_max_steps: int = Field(ge=1, le=MAX_OUTER_STEPS)
    halt_exploration_prob: float = Field(ge=0, le=1)

    forward_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

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

    @model_validator(mode="after")
    def _graph_is_bounded(self) -> HierarchicalReasoningModel_ACTV1Config:
        blocks = self.H_cycles * (self.L_cycles * self.L_layers + self.H_layers)
        if blocks > MAX_BLOCKS:
            raise ValueError(
                f"H_cycles * (L_cycles * L_layers + H_layers) = {blocks:,} blocks in one outer step, at most "
                f"{MAX_BLOCKS:,}; choose fewer cycles or layers"
            )
        return self

    @property
    def puzzle_emb_len(self) -> int:
        """Tokens that the puzzle embedding takes before the puzzle: ceil(puzzle_emb_ndim / hidden_size)."""
        return -(-self.puzzle_emb_ndim // self.hidden_size)


class ReasoningModule(nn.Module):
    """One of the two levels: adds the injection to its state, then applies its blocks in order."""

    def __init__(self, config: HierarchicalReasoningModel_ACTV1Config, num_layers: int, keys: Iterator[mx.array]):
        super().__init__()
        self.layers = [
            Block(
                config.hidden_size,
                config.num_heads,
                config.expansion,
                keys,
                rope_theta=config.rope_theta if config.pos_encodings == "rope" else None,
                rms_norm_eps=config.rms_norm_eps,
            )
            for _ in range(num_layers)
        ]

    def __call__(self, hidden: mx.array, injection: mx.array, *, first: int | None = None) -> mx.array:
        """Map state `[b, t, d]` and injection `[b, t, d]` to the new state, or to its `first` tokens."""
        *layers, last = self.layers
        hidden = hidden + injection
        for layer in layers:
            hidden = layer(hidden)
        return last(hidden, first=first)


class HierarchicalReasoningModel_ACTV1_Inner(nn.Module):
    """Embeddings, the two-level recurrence with its one-step gradient, and the output heads."""

    def __init__(self, config: HierarchicalReasoningModel_ACTV1Config, key: mx.array):
        super().__init__()
        keys = random_keys(key)
        dtype = FORWARD_DTYPES[config.forward_dtype]
        self._config = config

        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, next(keys), dtype=dtype)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, next(keys))
        self.q_head = Linear(config.hidden_size, 2, next(keys), bias=True)
        self.q_head.weight = mx.zeros_like(self.q_head.weight)
        self.q_head.bias = mx.full((2,), Q_HEAD_INITIAL_BIAS)
        if config.puzzle_emb_ndim > 0:
            self.puzzle_emb = SparseEmbedding(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        if config.pos_encodings == "learned":
            self.embed_pos = Embedding(
                config.seq_len + config.puzzle_emb_len, config.hidden_size, next(keys), dtype=dtype
            )
        self.H_level = ReasoningModule(config, config.H_layers, keys)
        self.L_level = ReasoningModule(config, config.L_layers, keys)

        self.H_init = truncated_normal((config.hidden_size,), 1.0, next(keys)).astype(dtype)
        self.L_init = truncated_normal((config.hidden_size,), 1.0, next(keys)).astype(dtype)
        self.freeze(keys=["H_init", "L_init"], recurse=False)

    def input_embeddings(self, inputs: mx.array, puzzle_rows: mx.array | None) -> mx.array:
        """Embed tokens int32 `[b, s]` behind puzzle rows float32 `[b, puzzle_emb_ndim]`; returns `[b, t, d]`."""
        c = self._config
        embedding = self.embed_tokens(inputs)  # (b s d)
        if puzzle_rows is not None:
            padding = c.puzzle_emb_len * c.hidden_size - c.puzzle_emb_ndim
            puzzle = mx.pad(puzzle_rows.astype(embedding.dtype), [(0, 0), (0, padding)])
            puzzle = puzzle.reshape(-1, c.puzzle_emb_len, c.hidden_size)  # (b p d)
            embedding = mx.concatenate([puzzle, embedding], axis=1)  # (b t d)
        if c.pos_encodings == "learned":
            embedding = math.sqrt(0.5) * (embedding + self.embed_pos.table())  # keeps the variance of one summand
        return math.sqrt(c.hidden_size) * embedding

    def __call__(
        self, z_H: mx.array, z_L: mx.array, embeddings: mx.array
    ) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array]:
        """Run all cycles; only the last update of each level is differentiated (paper, section 2: 1-step gradient).

        Args:
            z_H: `[b, t, d]`, forward dtype.
            z_L: `[b, t, d]`, forward dtype.
            embeddings: `[b, t, d]` from `input_embeddings`.

        Returns:
            `(z_H, z_L, logits, q_halt, q_continue)`: the new states, cut off from differentiation; logits
            `[b, s, v]` in the forward dtype; the two Q logits, float32 `[b]`.
        """
        z_H, z_L = self._cycle(z_H, z_L, embeddings)
        z_H = self.H_level(z_H, z_L)

        logits = self.lm_head(z_H[:, self._config.puzzle_emb_len :])
        q_halt, q_continue = self._q_logits(z_H)
        return mx.stop_gradient(z_H), mx.stop_gradient(z_L), logits, q_halt, q_continue

    def next_q_logits(self, z_H: mx.array, z_L: mx.array, embeddings: mx.array) -> tuple[mx.array, mx.array]:
        """The last two results of a call alone, for which the last block has to compute only the first token."""
        z_H, z_L = self._cycle(z_H, z_L, embeddings)
        return self._q_logits(self.H_level(z_H, z_L, first=1))

    def _cycle(self, z_H: mx.array, z_L: mx.array, embeddings: mx.array) -> tuple[mx.array, mx.array]:
        """All updates of the two states but the last one of z_H; of these the last one of z_L is differentiated."""
        c = self._config
        constant = mx.stop_gradient(embeddings)
        for h_cycle in range(c.H_cycles):
            last_h = h_cycle == c.H_cycles - 1
            for _ in range(c.L_cycles - last_h):
                z_L = self.L_level(z_L, z_H + constant)
            if not last_h:
                z_H = self.H_level(z_H, z_L)
        z_H, z_L = mx.stop_gradient(z_H), mx.stop_gradient(z_L)
        return z_H, self.L_level(z_L, z_H + embeddings)

    def _q_logits(self, z_H: mx.array) -> tuple[mx.array, mx.array]:
        q_logits = self.q_head(z_H[:, 0].astype(mx.float32))  # (b 2)
        return q_logits[:, 0], q_logits[:, 1]


class HierarchicalReasoningModel_ACTV1(nn.Module):
    """The inner model under adaptive computation time: rows halt by their Q values and make room for new puzzles."""

    Config = HierarchicalReasoningModel_ACTV1Config

    def __init__(self, config: HierarchicalReasoningModel_ACTV1Config, key: mx.array):
        super().__init__()
        self._config = config
        self.inner = HierarchicalReasoningModel_ACTV1_Inner(config, key)

    @property
    def config(self) -> HierarchicalReasoningModel_ACTV1Config:
        """The configuration that the model was built from."""
        return self._config

    def initial_carry(self, batch: dict[str, mx.array]) -> Carry:
        """The carry before the first step: every row halted, so that `begin_step` fills all of them from its batch."""
        c = self._config
        batch_size = batch["inputs"].shape[0]
        z = mx.zeros((batch_size, c.seq_len + c.puzzle_emb_len, c.hidden_size), FORWARD_DTYPES[c.forward_dtype])
        return {
            "z_H": z,
            "z_L": z,
            "steps": mx.zeros((batch_size,), mx.int32),
            "halted": mx.ones((batch_size,), mx.bool_),
            "current_data": {name: mx.zeros_like(array) for name, array in batch.items()},
        }

    def begin_step(self, carry: Carry, batch: dict[str, mx.array]) -> Carry:
        """Give the rows that have halted a fresh state and the data of `batch`; the others keep theirs."""
        halted = carry["halted"]
        dtype = carry["z_H"].dtype

        def choose(fresh: mx.array, kept: mx.array) -> mx.array:
            return mx.where(halted.reshape(-1, *([1] * (kept.ndim - 1))), fresh, kept)

        return {
            "z_H": choose(self.inner.H_init.astype(dtype), carry["z_H"]),
            "z_L": choose(self.inner.L_init.astype(dtype), carry["z_L"]),
            "steps": mx.where(halted, 0, carry["steps"]),
            "halted": halted,
            "current_data": {name: choose(batch[name], kept) for name, kept in carry["current_data"].items()},
        }

    def puzzle_rows(self, carry: Carry) -> mx.array | None:
        """The puzzle embeddings of the carry's data, float32 `[b, puzzle_emb_ndim]`; None where the model has none."""
        if "puzzle_emb" not in self.inner:
            return None
        return self.inner.puzzle_emb(carry["current_data"]["puzzle_identifiers"])

    def __call__(
        self,
        carry: Carry,
        puzzle_rows: mx.array | None,
        *,
        training: bool,
        key: mx.array | None = None,
        halt_by_q: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> tuple[Carry, dict[str, mx.array]]:
        """One outer step for every row.

        Args:
            carry: what `begin_step` returned.
            puzzle_rows: what `puzzle_rows` returned, or a copy with respect to which to differentiate.
            training: evaluation runs halt_max_steps steps; training lets rows halt by their Q values, with exploration,
                and computes the target of Q-continue.
            key: random key of the exploration; needed when training.
            halt_by_q: let rows halt by their Q values in evaluation too.
            rank, num_ranks: which slice of a global batch the rows are. With equal keys, all ranks together explore as
                one would that has the whole batch.

        Returns:
            The new carry and the outputs: `logits` `[b, s, v]`, `q_halt_logits` and `q_continue_logits` float32 `[b]`,
            `halts` bool `[b]`, whether the model's rule would halt the row here,
            and when training with halt_max_steps > 1 also `target_q_continue` float32 `[b]`.
        """
        c = self._config
        data = carry["current_data"]
        embeddings = self.inner.input_embeddings(data["inputs"], puzzle_rows)
        z_H, z_L, logits, q_halt, q_continue = map_rows(self.inner, carry["z_H"], carry["z_L"], embeddings)
        halts = mx.stop_gradient(q_halt) > mx.stop_gradient(q_continue)
        outputs = {"logits": logits, "q_halt_logits": q_halt, "q_continue_logits": q_continue, "halts": halts}

        steps = carry["steps"] + 1
        last = steps >= c.halt_max_steps
        halted = last
        if training or halt_by_q:
            halted = halted | halts
        if training and c.halt_max_steps > 1:
            if c.halt_exploration_prob > 0:
                if key is None:
                    raise ValueError("training with halt_exploration_prob > 0 needs a random key")
                explore_key, min_steps_key = mx.random.split(key)
                everywhere, mine = (num_ranks * len(steps),), slice(rank * len(steps), (rank + 1) * len(steps))
                explores = mx.random.uniform(shape=everywhere, key=explore_key)[mine] < c.halt_exploration_prob
                min_steps = mx.random.randint(2, c.halt_max_steps + 1, everywhere, key=min_steps_key)[mine]
                halted = halted & (steps >= mx.where(explores, min_steps, 0))

            # The target is what the model thinks of the state that it has just reached.
            next_q_halt, next_q_continue = map_rows(self.inner.next_q_logits, z_H, z_L, mx.stop_gradient(embeddings))
            target = mx.sigmoid(mx.where(last, next_q_halt, mx.maximum(next_q_halt, next_q_continue)))
            outputs["target_q_continue"] = mx.stop_gradient(target)

        new_carry: Carry = {"z_H": z_H, "z_L": z_L, "steps": steps, "halted": halted, "current_data": data}
        return new_carry, outputs
