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
    # Equal identifiers arrive at the same bits, so that it does not matter which of their rows is written last.
    summed = sums_over_equal(identifiers, row_gradients)  # (b dims)
    updated = rows * (1.0 - lr * weight_decay) - lr * mx.sign(summed)
    weights[identifiers] = updated


def sums_over_equal(identifiers: mx.array, rows: mx.array) -> mx.array:
    """Sum rows over equal identifiers, in float32 and in an order that depends on the identifiers alone.

    A scatter-add would add in another order at each run on a GPU, and the sign of a sum near zero with it; a product
    with the matrix of what is equal would round the rows first on GPUs that multiply in TF32.

    Args:
        identifiers: int32 `[b]`.
        rows: float32 `[b, dims]`.

    Returns:
        Float32 `[b, dims]`: for each row the sum over all with its identifier, bit for bit the same for all of them.
    """
    order = mx.argsort(identifiers)
    identifier, sums = identifiers[order], rows[order]
    distance = 1
    while distance < len(order):  # each row holds the sum of the next `distance` rows, as far as they are of its group
        same = identifier[:-distance] == identifier[distance:]
        further = mx.where(same[:, None], sums[distance:], 0.0)
        sums = mx.concatenate([sums[:-distance] + further, sums[-distance:]])
        distance *= 2
    first_of_group = mx.argmax(identifiers[:, None] == identifier[None, :], axis=1)  # (b)
    return sums[first_of_group]
