"""A toy mixer in place of attention: each token sees one neighbour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from models.layers import Linear


class NeighbourMixer(nn.Module):
    """Mixes each token with the one `distance` places before it, around the end."""

    def __init__(self, config: Any, keys: Iterator[mx.array], distance: int = 1):
        super().__init__()
        self.proj = Linear(2 * config.hidden_size, config.hidden_size, next(keys))
        self._distance = distance

    def __call__(self, x: mx.array) -> mx.array:
        """Map `[b, t, d]` to `[b, t, d]`."""
        return self.proj(mx.concatenate([x, mx.roll(x, self._distance, 1)], axis=-1))
