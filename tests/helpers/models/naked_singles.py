"""A model that solves 4x4 Sudoku by the rules, untrained: at every outer step it fills the cells that one digit fits.

`tests.helpers.solving.rule_model` puts it among the modules of `models`. Shapes: b batch, s cells, v vocabulary.
"""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np

from models.act import ACTConfig, ACTModel, Core, Outputs, State

_SIDE, _BOX, _FIRST = 4, 2, 2  # the token of digit 1


def _peers() -> np.ndarray:
    """Which cells share a row, column or box: float32 `[s, s]`."""
    places = [(row, col, (row // _BOX, col // _BOX)) for row, col in itertools.product(range(_SIDE), repeat=2)]
    return np.array(
        [[float(a != b and any(x == y for x, y in zip(a, b, strict=True))) for b in places] for a in places], np.float32
    )


class NakedSinglesConfig(ACTConfig):
    """No keys of its own."""


class NakedSinglesCore(Core):
    """Its state is the board so far, one-hot; its only weight scales the logits."""

    def __init__(self, config: NakedSinglesConfig, key: mx.array):
        super().__init__(config, key)
        self.scale = mx.full((1,), 10.0)
        self._peers = mx.array(_peers())

    def initial_state(self, rows: int) -> State:
        return {"board": mx.zeros((rows, self._config.seq_len, self._config.vocab_size))}

    def input_embeddings(self, data: dict[str, mx.array], puzzle_rows: mx.array | None) -> mx.array:
        return (data["inputs"][..., None] == mx.arange(self._config.vocab_size)).astype(mx.float32)

    def __call__(self, state: State, embeddings: mx.array) -> tuple[State, Outputs]:
        digits = mx.maximum(state["board"], embeddings)[..., _FIRST:]  # (b, s, 4)
        filled = digits.sum(axis=-1, keepdims=True) > 0
        fits = ((self._peers @ digits) == 0) & ~filled
        single = fits & (fits.sum(axis=-1, keepdims=True) == 1)
        digits = digits + single.astype(mx.float32)
        unfilled = 1.0 - digits.sum(axis=-1, keepdims=True)
        board = mx.concatenate([mx.zeros_like(unfilled), unfilled, digits], axis=-1)
        q_halt = 1.0 - 2.0 * unfilled.sum(axis=(1, 2))
        kept = board * mx.array([0.0, 0.0, *[1.0] * _SIDE])
        return {"board": mx.stop_gradient(kept)}, {"logits": self.scale * board, "q_halt_logits": q_halt}


class NakedSingles(ACTModel):
    """The core above under adaptive computation time."""

    Config = NakedSinglesConfig
    Inner = NakedSinglesCore
