"""The Hierarchical Reasoning Model with adaptive computation time (arXiv 2506.21734, section 2; "the paper").

Two recurrent modules share the work: L is updated L_cycles times for each of the H_cycles updates of H. The wrapper in
models/act.py lets every row of the batch take up to halt_max_steps outer steps, models/token_core.py holds input and
output. Shapes: b batch, t tokens of the puzzle embedding and of the puzzle, d hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from pydantic import Field

from models.act import ACTModel, Outputs, State
from models.layers import Attention, Block, ReasoningModule, SwiGLU
from models.loading import checked_options, load
from models.token_core import TokenConfig, TokenCore


class HierarchicalReasoningModel_ACTV1Config(TokenConfig):
    """The keys of `arch`, with the names of the PyTorch code, and the sizes of the data set."""

    H_cycles: int = Field(ge=1)
    L_cycles: int = Field(ge=1)
    H_layers: int = Field(ge=1)
    L_layers: int = Field(ge=1)

    mixer: dict[str, Any] | None = None  # what mixes tokens in a block: `name` and options; null: rotary attention
    pos_encodings: Literal["rope", "learned"]


def _module(config: HierarchicalReasoningModel_ACTV1Config, layers: int, keys: Iterator[mx.array]) -> ReasoningModule:
    """Make one of the two levels, of `layers` blocks."""
    return ReasoningModule(
        [
            Block(_mixer(config, keys), SwiGLU(config.hidden_size, config.expansion, keys), config.rms_norm_eps)
            for _ in range(layers)
        ]
    )


def _mixer(config: HierarchicalReasoningModel_ACTV1Config, keys: Iterator[mx.array]) -> nn.Module:
    """Make what mixes tokens in a block: attention, or `Class(config, keys, **options)` of the class that is named."""
    if config.mixer is None:
        theta = config.rope_theta if config.pos_encodings == "rope" else None
        return Attention(config.hidden_size, config.num_heads, keys, rope_theta=theta)
    options = dict(config.mixer)
    mixer = load(str(options.pop("name", "")), "arch.mixer.name", "my_mixer@MyMixer")
    return mixer(config, keys, **checked_options(mixer, options, "arch.mixer", given=2))


class HierarchicalReasoningModel_ACTV1_Inner(TokenCore):
    """The core: the two-level recurrence with its one-step gradient."""

    def __init__(self, config: HierarchicalReasoningModel_ACTV1Config, key: mx.array):
        super().__init__(config, key)
        self.H_level = _module(config, config.H_layers, self._keys)
        self.L_level = _module(config, config.L_layers, self._keys)
        self.H_init = self.initial_vector()
        self.L_init = self.initial_vector()
        self.freeze(keys=["H_init", "L_init"], recurse=False)

    def initial_state(self, rows: int) -> State:
        """Return z_H⁰ and z_L⁰, forward dtype `[b, t, d]`: fixed vectors, the same for every token."""
        return {"z_H": self.for_each_token(self.H_init, rows), "z_L": self.for_each_token(self.L_init, rows)}

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
        return {"z_H": mx.stop_gradient(z_H), "z_L": mx.stop_gradient(z_L)}, self.outputs(z_H)

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
