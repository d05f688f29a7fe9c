"""Models that solve puzzles by their rules, one round of deduction in an outer step. There is nothing to train.

All their numbers are whole, up to a scale of 1, so that the same row gives the same bits in any place of any batch.
They treat symmetric copies alike: a copy of a puzzle has the copy of its answer after every step.
Shapes: b batch, s cells, n digits of a Sudoku, v vocabulary.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from models.act import ACTConfig, ACTModel, Core, Outputs, State

BLANK = 1  # the token of a Sudoku's open cells
WALL, OPEN, START, GOAL, PATH = 1, 2, 3, 4, 5  # the tokens of mazes


class EliminationConfig(ACTConfig):
    """The keys of `arch` that the solver of Sudoku has."""

    box: tuple[int, int] = (2, 2)


class EliminationCore(Core):
    """Strikes in each round the digits that a decided cell has taken from its row, column and box.

    A cell without a single candidate is answered by the blank's token. Noise on the candidates strikes some at random:
    a guess, by which a puzzle may be solved or spoilt that deduction alone leaves open.
    """

    def __init__(self, config: EliminationConfig, key: mx.array):
        super().__init__(config, key)
        self.scale = mx.ones((1,))  # a checkpoint has to hold something
        box_rows, box_cols = config.box
        side = box_rows * box_cols
        row, col = np.divmod(np.arange(config.seq_len), side)
        units = (row, col, row // box_rows * box_rows + col // box_cols)
        same = np.any([unit[:, None] == unit for unit in units], axis=0)
        self._peers = mx.array((same & ~np.eye(config.seq_len, dtype=bool)).astype(np.float32))

    def initial_state(self, rows: int) -> State:
        """Every digit is possible, `[b, s, n]`."""
        return {"candidates": mx.ones((rows, self._config.seq_len, self._config.vocab_size - 2))}

    def input_embeddings(self, data: dict[str, mx.array], puzzle_rows: mx.array | None) -> mx.array:
        """What the clues allow, `[b, s, n]`."""
        tokens = data["inputs"][..., None]
        return ((tokens <= BLANK) | (tokens == mx.arange(2, self._config.vocab_size))).astype(mx.float32)

    def __call__(self, state: State, embeddings: mx.array) -> tuple[State, Outputs]:
        """Take a round."""
        candidates = (state["candidates"] > 0.5) * embeddings
        alone = candidates * (candidates.sum(axis=-1, keepdims=True) == 1)
        candidates = mx.where(self._peers @ alone > 0, 0.0, candidates)
        is_decided = candidates.sum(axis=-1, keepdims=True) == 1
        others = mx.broadcast_to(mx.array([-1.0, 0.5]), (*candidates.shape[:2], 2))
        logits = mx.concatenate([others, mx.where(is_decided, candidates, candidates / 4)], axis=-1) * self.scale
        q_halt = 0.5 - (~is_decided).sum(axis=(1, 2)).astype(mx.float32)
        return {"candidates": mx.stop_gradient(candidates)}, {"logits": logits, "q_halt_logits": q_halt * self.scale}


class Elimination(ACTModel):
    """The solver of Sudoku."""

    Config = EliminationConfig
    Inner = EliminationCore


class FloodCore(Core):
    """Floods a square maze from both ends, one cell further in a round; all shortest paths are the answer.

    A state counts down from s at its end, and has 0 where it has not yet come.
    """

    def __init__(self, config: ACTConfig, key: mx.array):
        super().__init__(config, key)
        self.scale = mx.ones((1,))
        self._side = math.isqrt(config.seq_len)

    def initial_state(self, rows: int) -> State:
        """Nothing is flooded, `[b, s]`."""
        return {name: mx.zeros((rows, self._config.seq_len)) for name in ("from_start", "from_goal")}

    def input_embeddings(self, data: dict[str, mx.array], puzzle_rows: mx.array | None) -> mx.array:
        """The tokens, `[b, s, v]`."""
        return (data["inputs"][..., None] == mx.arange(self._config.vocab_size)).astype(mx.float32)

    def __call__(self, state: State, embeddings: mx.array) -> tuple[State, Outputs]:
        """Take a round."""
        ends = {"from_start": embeddings[..., START], "from_goal": embeddings[..., GOAL]}
        is_free = embeddings[..., OPEN:].sum(axis=-1)
        new = {name: self._flooded(mx.round(state[name]), end, is_free) for name, end in ends.items()}
        level = (new["from_start"] * ends["from_goal"]).sum(axis=-1, keepdims=True)  # of the goal
        together = (new["from_start"] > 0) & (new["from_goal"] > 0) & (level > 0)
        is_path = together & (new["from_start"] + new["from_goal"] == level + self._config.seq_len)
        is_path = is_path & (embeddings[..., OPEN] > 0)
        path = (mx.arange(self._config.vocab_size) == PATH).astype(mx.float32)
        logits = mx.where(is_path[..., None], path, embeddings) * self.scale
        q_halt = mx.where(is_path.any(axis=-1), 0.5, -0.5) * self.scale
        return {name: mx.stop_gradient(array) for name, array in new.items()}, {
            "logits": logits,
            "q_halt_logits": q_halt,
        }

    def _flooded(self, water: mx.array, end: mx.array, is_free: mx.array) -> mx.array:
        board = mx.pad(water.reshape(-1, self._side, self._side), [(0, 0), (1, 1), (1, 1)])
        around = [board[:, :-2, 1:-1], board[:, 2:, 1:-1], board[:, 1:-1, :-2], board[:, 1:-1, 2:]]
        highest = mx.stack(around).max(axis=0).reshape(water.shape) - 1
        return mx.maximum(mx.maximum(water, highest), end * self._config.seq_len) * is_free


class Flood(ACTModel):
    """The solver of mazes."""

    Config = ACTConfig
    Inner = FloodCore
