"""The initialiser, the names of dtypes, and random keys."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mlx.core as mx

FORWARD_DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

_CUT = 2.0  # where the unit normal is cut on either side
_DENSITY_AT_CUT = math.exp(-0.5 * _CUT**2) / math.sqrt(2.0 * math.pi)
_MASS_WITHIN_CUT = math.erf(_CUT / math.sqrt(2.0))
# A unit normal cut at ±2 has standard deviation 0.8796; dividing by it restores 1.
TRUNCATED_NORMAL_SCALE = 1.0 / math.sqrt(1.0 - 2.0 * _CUT * _DENSITY_AT_CUT / _MASS_WITHIN_CUT)


def truncated_normal(shape: tuple[int, ...], std: float, key: mx.array) -> mx.array:
    """Draw from a normal cut at ±2 and rescaled so that the result has standard deviation `std`.

    This is the JAX/Flax definition, which the published model uses.

    Args:
        shape: of the result.
        std: its standard deviation.
        key: random key.

    Returns:
        float32 array of the given shape, within ±2 · 1.13685 · `std`.
    """
    return mx.random.truncated_normal(-_CUT, _CUT, shape, mx.float32, key=key) * (std * TRUNCATED_NORMAL_SCALE)


def random_keys(key: mx.array) -> Iterator[mx.array]:
    """Yield fresh random keys without end, all determined by `key`."""
    while True:
        key, subkey = mx.random.split(key)
        yield subkey
