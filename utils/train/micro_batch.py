"""`micro_batch_size`: the rows of a batch that are computed at a time, and what a training step takes of the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from common.errors import UserError
from dataset.puzzle_dataset import PuzzleDataset, padding_arrays
from utils.config import PretrainConfig
from utils.memory import DeviceMemory, RowMemory, device_memory, measure_rows, size_text
from utils.ranks.ranks import Ranks
from utils.train.state import TrainState
from utils.train.step import make_gradients_of_slice


@dataclass(frozen=True)
class StepMemory:
    """The memory that a training step takes on this rank, in bytes.

    Attributes:
        arrays: weights, moments and puzzle embeddings, and their average.
        gradients: of the weights, summed over slices.
        states: of all rows of the batch, once.
        checkpoint: a whole one. While it is written, its arrays stay.
        rows: what the rows of a slice take beside all that.
    """

    arrays: int
    gradients: int
    states: int
    checkpoint: int
    rows: RowMemory

    @property
    def fixed(self) -> int:
        """All that does not depend on the rows of a slice. The states are there as they were and as they become."""
        return self.arrays + self.gradients + 2 * self.states + self.checkpoint

    def of(self, rows: int) -> int:
        """Return the bytes of a step in slices of so many rows. The update needs the states twice more."""
        return self.fixed + max(self.rows.of(rows), 2 * self.states)

    def fitting(self, budget: int, most: int) -> int:
        """Return how many rows a slice can have, from 0 to `most`."""
        return self.rows.fitting(budget - self.fixed, most) if self.of(1) <= budget else 0


def measure_step(config: PretrainConfig, train_set: PuzzleDataset, budget: int) -> StepMemory:
    """Measure what a training step takes, by the forward and backward pass of small slices.

    With a state of its own, thrown away: nothing that a run depends on is touched.

    Args:
        config: the training configuration.
        train_set: the training split.
        budget: bytes that a step may take. Slices that surely fit are measured.
    """
    state = TrainState(config, train_set.metadata, total_steps=1)
    mx.eval(state.arrays)
    states, checkpoint = state_bytes(state, train_set.batch_size), checkpoint_bytes(state)
    weights = _bytes(state.head.trainable_parameters())
    found = StepMemory(_bytes(state.arrays) + config.ema * weights, weights, states, checkpoint, RowMemory({}))

    gradients_of_slice = make_gradients_of_slice(state.head, config.global_batch_size)
    example = next(train_set.train_batches(0, epochs=config.epochs_per_iteration))

    def compute(rows: int) -> None:
        batch = {name: mx.array(array[:rows]) for name, array in example.arrays.items()}
        mx.eval(gradients_of_slice(state.head.model.initial_carry(batch), batch))

    rows = measure_rows(compute, train_set.batch_size, budget - found.fixed)
    return StepMemory(found.arrays, found.gradients, states, checkpoint, rows)


def state_bytes(state: TrainState, rows: int) -> int:
    """Return the bytes of the states and puzzles of so many rows, the carry. Nothing is computed."""
    return _bytes(_carry(state, rows))


def checkpoint_bytes(state: TrainState) -> int:
    """Return the bytes of the arrays in a checkpoint. Nothing is computed."""
    return _bytes(state.checkpoint_arrays(_carry(state, state.config.global_batch_size)))


def _carry(state: TrainState, rows: int) -> Any:
    blank = {name: mx.array(array) for name, array in padding_arrays(state.metadata, rows).items()}
    return state.head.model.initial_carry(blank)


def _bytes(tree: Any) -> int:
    leaves = dict(tree_flatten(tree)).values()
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, mx.array))


def why_not(memory: StepMemory, device: DeviceMemory) -> str:
    """Say why not even one row fits."""
    return (
        f"a step needs {size_text(memory.of(1))} with one row at a time, of {size_text(device.budget)}; "
        f"{size_text(memory.arrays + memory.gradients)} are weights, moments and gradients, "
        f"{size_text(4 * memory.states)} the states of all rows (a smaller global_batch_size has less)"
    )


def rows_at_a_time(config: PretrainConfig, train_set: PuzzleDataset, ranks: Ranks) -> int | None:
    """Return the rows of a slice for a run, the same on all ranks; None: all at once.

    Args:
        config: the training configuration. With `micro_batch_size=auto` the device's memory decides.
        train_set: the training split.
        ranks: the processes of the run. All have to call this.

    Raises:
        UserError: if not even one row fits.
    """
    if config.micro_batch_size != "auto":
        return config.micro_batch_size
    device = device_memory(ranks)
    memory = measure_step(config, train_set, device.budget)
    rows = min(ranks.gather(memory.fitting(device.budget, train_set.batch_size)))
    if not rows:
        raise UserError(f"micro_batch_size = 'auto': {why_not(memory, device)}; micro_batch_size=1 tries it anyway")
    return rows
