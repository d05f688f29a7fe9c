"""Puzzle embeddings: one row for each puzzle identifier, of which a step touches only those in its batch.

On ARC the table has about a million rows of 512, so its gradient is never formed. A training step gathers the rows of
its batch, differentiates with respect to these rows, and writes back the updated ones.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class SparseEmbedding(nn.Module):
    """A table `weights` float32 `[num_puzzle_identifiers, dims]`, initially zero, trained by `sign_sgd_rows` alone."""

    def __init__(self, num_embeddings: int, dims: int):
        super().__init__()
        self.weights = mx.zeros((num_embeddings, dims))
        self.freeze(keys=["weights"], recurse=False)

    def __call__(self, identifiers: mx.array) -> mx.array:
        """Look up rows float32 `[b, dims]` of int32 identifiers `[b]`, cut off from differentiation."""
        return mx.stop_gradient(self.weights[identifiers])


def sign_sgd_rows(
    weights: mx.array,
    identifiers: mx.array,
    rows: mx.array,
    row_gradients: mx.array,
    lr: mx.array,
    weight_decay: float,
) -> None:
    """Update in place the rows that a batch used: SignSGD with decoupled weight decay, HRM's sparse optimiser.

    The gradients of equal identifiers are summed, then each distinct row becomes
    row · (1 - lr · weight_decay) - lr · sign(sum), once.

    Args:
        weights: the table, float32 `[n, dims]`.
        identifiers: int32 `[b]`, repetitions allowed.
        rows: float32 `[b, dims]`, `weights[identifiers]`, looked up earlier. While a lookup is under way, MLX would
            write into a copy of the whole table.
        row_gradients: float32 `[b, dims]`, the gradient of the loss with respect to `rows`.
        lr: learning rate, a float32 scalar.
        weight_decay: decoupled weight decay, relative to `lr`.
    """
    # Every row of the batch is represented by the first one with the same identifier, so that all of them arrive at the
    # same bits and it does not matter which of the equal rows is written last.
    first = mx.argmax(identifiers[:, None] == identifiers[None, :], axis=1)  # (b)
    summed = mx.zeros_like(row_gradients).at[first].add(row_gradients)[first]  # (b dims)
    updated = rows * (1.0 - lr * weight_decay) - lr * mx.sign(summed)
    weights[identifiers] = updated
