"""Adaptive computation time: the wrapper around every core, whatever the core computes.

A core takes one outer step. The wrapper chooses the puzzle of each row of the batch: rows that have halted start anew
with the next puzzle, the others go on with theirs (paper, section 2, "Adaptive computational time").
Shapes: b batch, s tokens of a puzzle, t tokens of the state (puzzle embedding and puzzle), d hidden size, v vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from pydantic import BaseModel, ConfigDict, Field

from models.common import random_keys
from models.kernels import map_rows
from models.sparse_embedding import SparseEmbedding

State = dict[str, mx.array]  # what a core keeps of a row from one outer step to the next, arrays [b, …] by name
Outputs = dict[str, mx.array]  # what an outer step yields, arrays [b, …] by name
# A State and what the wrapper adds: `steps` int32 [b], outer steps taken; `halted` bool [b]; `current_data`, the arrays
# of the batch (`inputs` [b, s], `labels` [b, s], `puzzle_identifiers` [b], …) that each row is working on.
Carry = dict[str, Any]
_OF_WRAPPER = ("steps", "halted", "current_data")
PUZZLE_EMB = "puzzle_emb"  # a core's attribute for its puzzle embedding, if there is one


def core_state(carry: Carry) -> State:
    """Return the part of a carry that is the core's."""
    return {name: array for name, array in carry.items() if name not in _OF_WRAPPER}


class ACTConfig(BaseModel):
    """The keys and sizes of every architecture. Subclasses add keys of their own; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    seq_len: int = Field(ge=1)  # this and the next two are from the data set
    vocab_size: int = Field(ge=1)
    num_puzzle_identifiers: int = Field(ge=1)

    halt_max_steps: int = Field(ge=1)
    halt_exploration_prob: float = Field(ge=0, le=1)

    forward_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class Core(nn.Module):
    """An architecture. Subclasses define the first three methods, and the others where they differ.

    Row i of a result depends on row i of the arguments alone, and nothing is random: ranks and CPU streams compute a
    share of the rows each, in a step that is compiled once. Arrays that are not trained are frozen.

    Args:
        config: the architecture's `Config`.
        key: random key of the initial weights.

    Attributes:
        puzzle_emb: the puzzle embedding, a `SparseEmbedding`, if there is one.
        _config: the configuration.
        _keys: fresh random keys without end, for the initial weights.
    """

    def __init__(self, config: Any, key: mx.array):
        super().__init__()
        self._config = config
        self._keys = random_keys(key)

    def initial_state(self, rows: int) -> State:
        """Return the state in which a puzzle begins, arrays `[rows, …]`, the same for each row."""
        raise NotImplementedError

    def input_embeddings(self, data: dict[str, mx.array], puzzle_rows: mx.array | None) -> mx.array:
        """Embed the puzzles, once for an outer step; on a CPU each stream embeds its share of the rows.

        Args:
            data: the arrays of the batch, `inputs` int32 `[b, s]` among them.
            puzzle_rows: float32 `[b, puzzle_emb_ndim]`, or None where the core has no puzzle embedding.

        Returns:
            `[b, t, d]`.
        """
        raise NotImplementedError

    def __call__(self, state: State, embeddings: mx.array) -> tuple[State, Outputs]:
        """Take one outer step.

        Args:
            state: arrays `[b, …]`, as `initial_state` or the previous step returned them.
            embeddings: `[b, t, d]`, what `input_embeddings` returned.

        Returns:
            The new state, in the dtypes of the old one and detached; and the outputs, with at least `logits`
            `[b, s, v]` and `q_halt_logits` float32 `[b]`.
        """
        raise NotImplementedError

    def halts(self, outputs: Outputs) -> mx.array:
        """Return whether each row is done, bool `[b]`."""
        return outputs["q_halt_logits"] > 0

    def target_q_continue(self, state: State, embeddings: mx.array, last: mx.array) -> mx.array | None:
        """Compute the target of Q-continue.

        Args:
            state: the state after the outer step.
            embeddings: `[b, t, d]`, the embeddings of that step.
            last: bool `[b]`, whether it was a row's last step.

        Returns:
            float32 `[b]` from 0 to 1, or None if Q-continue is not trained.
        """
        return None


class ACTModel(nn.Module):
    """A core under adaptive computation time. Architectures subclass it to name their `Config` and their `Inner`.

    Args:
        config: a `Config`.
        key: random key of the initial weights.

    Attributes:
        inner: the core, an `Inner`.
    """

    Config: type[ACTConfig]
    Inner: type[Core]

    def __init__(self, config: Any, key: mx.array):
        super().__init__()
        self._config = config
        self.inner = self.Inner(config, key)

    @property
    def config(self) -> Any:
        """The configuration that the model was built from."""
        return self._config

    @property
    def puzzle_emb(self) -> SparseEmbedding | None:
        """The puzzle embedding, which has an optimiser of its own."""
        return self.inner.get(PUZZLE_EMB)

    @property
    def trains_q_continue(self) -> bool:
        """Whether the core has a target for Q-continue. Without one its Q-continue, if it has any, means nothing."""
        return type(self.inner).target_q_continue is not Core.target_q_continue

    def initial_carry(self, batch: dict[str, mx.array]) -> Carry:
        """Return the carry before the first step: every row has halted, so `begin_step` fills all from its batch."""
        rows = len(batch["inputs"])
        state = {name: mx.zeros_like(array) for name, array in self.inner.initial_state(rows).items()}
        if taken := state.keys() & set(_OF_WRAPPER):
            raise ValueError(f"a state can't be called {', '.join(taken)}: the carry has an entry of that name")
        return state | {
            "steps": mx.zeros((rows,), mx.int32),
            "halted": mx.ones((rows,), mx.bool_),
            "current_data": {name: mx.zeros_like(array) for name, array in batch.items()},
        }

    def begin_step(self, carry: Carry, batch: dict[str, mx.array]) -> Carry:
        """Give the rows that have halted a fresh state and the data of `batch`; the others keep theirs."""
        halted = carry["halted"]

        def choose(fresh: mx.array, kept: mx.array) -> mx.array:
            return mx.where(halted.reshape(-1, *([1] * (kept.ndim - 1))), fresh, kept)

        state = {name: choose(fresh, carry[name]) for name, fresh in self.inner.initial_state(len(halted)).items()}
        return state | {
            "steps": mx.where(halted, 0, carry["steps"]),
            "halted": halted,
            "current_data": {name: choose(batch[name], kept) for name, kept in carry["current_data"].items()},
        }

    def puzzle_rows(self, carry: Carry) -> mx.array | None:
        """Return the puzzle embeddings of the carry's data, float32 `[b, puzzle_emb_ndim]`, or None without any."""
        return None if self.puzzle_emb is None else self.puzzle_emb(carry["current_data"]["puzzle_identifiers"])

    def __call__(
        self,
        carry: Carry,
        puzzle_rows: mx.array | None,
        *,
        training: bool,
        min_steps: mx.array | None = None,
        halt_by_q: bool = False,
        max_steps: int | None = None,
    ) -> tuple[Carry, Outputs]:
        """Take one outer step with every row.

        Args:
            carry: what `begin_step` returned.
            puzzle_rows: what `puzzle_rows` returned, or a copy with respect to which to differentiate.
            training: let rows halt by the core's rule, and compute the target of Q-continue. Evaluation takes
                `max_steps` steps.
            min_steps: int32 `[b]`, how many steps a row takes at least: the exploration, see `draw_min_steps`.
            halt_by_q: let rows halt by the core's rule in evaluation too.
            max_steps: the number of steps at which a row halts at the latest; None: halt_max_steps.

        Returns:
            The new carry and the outputs: those of the core; `halts` bool `[b]`, the core's rule; and
            `target_q_continue` float32 `[b]`, if the core has one and a row may take more than one step.
        """
        data, steps = carry["current_data"], carry["steps"] + 1
        last = steps >= (max_steps or self.config.halt_max_steps)
        with_target = training and self.config.halt_max_steps > 1

        def outer_step(state: State, data: dict, puzzle_rows: mx.array | None, last: mx.array) -> tuple[State, Outputs]:
            embeddings = self.inner.input_embeddings(data, puzzle_rows)
            state, outputs = self.inner(state, embeddings)
            if with_target:
                target = self.inner.target_q_continue(state, mx.stop_gradient(embeddings), last)
                if target is not None:
                    outputs = outputs | {"target_q_continue": mx.stop_gradient(target)}
            return state, outputs | {"halts": mx.stop_gradient(self.inner.halts(outputs))}

        state, outputs = map_rows(outer_step, core_state(carry), data, puzzle_rows, last)
        halted = (last | outputs["halts"]) if training or halt_by_q else last
        if min_steps is not None:
            halted = halted & (steps >= min_steps)
        return state | {"steps": steps, "halted": halted, "current_data": data}, outputs


def draw_min_steps(key: mx.array, rows: int, halt_max_steps: int, probability: float) -> mx.array | None:
    """Draw how many outer steps each row takes at least (paper, section 2, exploration).

    As in the published code, this is drawn anew in each outer step, and not once for a puzzle.

    Args:
        key: random key.
        rows: rows of the global batch. Each rank draws for all of them, and takes its own.
        halt_max_steps: a row that explores draws from 2 to this number.
        probability: that a row explores.

    Returns:
        int32 `[rows]`, 0 where a row does not explore; None if none ever does.
    """
    if halt_max_steps == 1 or probability == 0:
        return None
    explore_key, min_steps_key = mx.random.split(key)
    explores = mx.random.uniform(shape=(rows,), key=explore_key) < probability
    return mx.where(explores, mx.random.randint(2, halt_max_steps + 1, (rows,), key=min_steps_key), 0)
