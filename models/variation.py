"""Varied states: other ways through the same puzzle, for the further samples of an evaluation.

Noise on the state at every outer step is PTRM's (arXiv 2605.19943), random initial states are EqR's (arXiv 2605.21488).
Each row draws from a key of its own, so that its numbers depend on neither its place in the batch nor the other rows.
"""

from __future__ import annotations

import mlx.core as mx

from models.act import Carry, State, core_state

# An array of the batch, uint32 [b, 2]: the random key of each row's sample; zeros, the plain one, is never varied. No
# field of a data set can have this name.
SAMPLE_KEY = "_sample_key"
_INITIAL = 1 << 31  # in place of the step's number


def vary(carry: Carry, noise: float, random_init: bool) -> Carry:
    """Vary the states of the rows that have a sample key, before an outer step.

    Args:
        carry: what `begin_step` returned; its data hold SAMPLE_KEY.
        noise: standard deviation of what is added to each number of the states. These have a root mean square of 1
            where blocks end in RMSNorm, as in HRM, TRM and URM.
        random_init: draw the states in which a row begins, each number from a normal distribution of variance 1.

    Returns:
        The carry, with new states.
    """
    keys, steps = carry["current_data"][SAMPLE_KEY], carry["steps"].astype(mx.uint32)
    varied = (keys != 0).any(axis=-1)
    states = core_state(carry)
    if random_init:
        drawn = _normal(states, keys, mx.full(steps.shape, _INITIAL, mx.uint32))
        begins = varied & (steps == 0)
        states = {name: mx.where(_for_rows(begins, state), drawn[name], state) for name, state in states.items()}
    if noise:
        drawn = _normal(states, keys, steps)
        states = {
            name: mx.where(_for_rows(varied, state), state + noise * drawn[name], state)
            for name, state in states.items()
        }
    return carry | states


def _normal(states: State, keys: mx.array, steps: mx.array) -> State:
    """Draw arrays like the states from the normal distribution, each row by its key and step, uint32 `[b, 2]` `[b]`."""
    drawn = {}
    for number, (name, state) in enumerate(sorted(states.items())):
        row_keys = mx.stack([keys[:, 0] ^ number, keys[:, 1] ^ steps], axis=-1)
        drawn[name] = _normal_rows(row_keys, state.shape[1:], state.dtype)
    return drawn


def _normal_rows(keys: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Draw `[b, *shape]`, each row by its key, uint32 `[b, 2]`."""
    return mx.vmap(lambda key: mx.random.normal(shape, dtype, key=key))(keys)


def _for_rows(chosen: mx.array, state: mx.array) -> mx.array:
    """Give a bool `[b]` as many axes as a state has."""
    return chosen.reshape(-1, *([1] * (state.ndim - 1)))
