"""A toy optimiser: the sign of a running mean of the gradients."""

from __future__ import annotations

import mlx.core as mx
from mlx.optimizers import Optimizer


class SignMomentum(Optimizer):
    """m ← momentum · m + (1 - momentum) · g, then p ← p - lr · (sign(m) + weight_decay · p)."""

    def __init__(self, learning_rate: float, weight_decay: float = 0.0, momentum: float = 0.9):
        super().__init__()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.momentum = momentum

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Create the running mean, zero."""
        state["m"] = mx.zeros_like(parameter)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated parameter and move the running mean."""
        state["m"] = self.momentum * state["m"] + (1 - self.momentum) * gradient
        return parameter - self.learning_rate * (mx.sign(state["m"]) + self.weight_decay * parameter)
