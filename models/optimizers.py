"""AdamATan2, and the guard of any optimiser of MLX against steps that are not finite.

The optimiser of the puzzle embedding is beside its table, in sparse_embedding.py.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from models.kernels import EvenShares, adam_atan2


def update_if(condition: mx.array, optimizer: optim.Optimizer, model: nn.Module, gradients: dict) -> None:
    """Update a model if `condition` is true; otherwise leave parameters and optimiser state as they are.

    Args:
        condition: bool scalar; its value is not read in Python.
        optimizer: any of `mlx.optimizers`, or `AdamATan2`, which has a cheaper `update_if` of its own.
        model: the model.
        gradients: of its trainable parameters; NaN and infinities are allowed where `condition` is false.
    """
    if isinstance(optimizer, AdamATan2):
        optimizer.update_if(condition, model, gradients)
        return
    parameters, state = model.trainable_parameters(), tree_map(lambda array: array, optimizer.state)
    optimizer.update(model, gradients)

    def choose(updated: mx.array, before: mx.array) -> mx.array:
        return mx.where(condition, updated, before)

    model.update(tree_map(choose, model.trainable_parameters(), parameters))
    # Into the dict that is there, where a compiled step looks for it; assigning to `optimizer.state` would put another.
    optimizer.state.update(tree_map(choose, optimizer.state, state))


class AdamATan2(optim.Optimizer):
    """Adam with atan2 in place of the division (arXiv 2407.05872, section 3.3).

    It needs no epsilon and is invariant to the scale of the gradient. As in the PyTorch HRM, without scale factors.

    For every parameter: p ← p · (1 - lr · wd), m ← lerp(m, g, 1 - β1), v ← lerp(v, g², 1 - β2),
    p ← p - lr / (1 - β1^t) · atan2(m, sqrt(v) / sqrt(1 - β2^t)).

    Args:
        learning_rate: first learning rate; assign `learning_rate` before each update to follow a schedule.
        betas: β1, β2.
        weight_decay: decoupled decay, applied to every parameter, biases included.
    """

    def __init__(self, learning_rate: float, betas: tuple[float, float], weight_decay: float):
        super().__init__()
        self.learning_rate = learning_rate
        self.betas = betas
        self.weight_decay = weight_decay
        self._applies = mx.array(True)
        self._factors = mx.zeros((5,))

    def update_if(self, condition: mx.array, model: nn.Module, gradients: dict) -> None:
        """Update if `condition` is true. The condition is a factor in the loops, so that nothing is copied."""
        updates = self.step
        self._applies = condition
        self.update(model, gradients)
        self._applies = mx.array(True)
        self.state["step"] = mx.where(condition, self.step, updates)

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        """Return the updated parameters, a tree like both arguments, and update the moments in `state`."""
        beta1, beta2 = self.betas
        t = self.step.astype(mx.float32) + 1.0
        applies = self._applies.astype(mx.float32)
        lr = self.learning_rate * applies  # all rates zero where the update shall not take place
        # 1 - β^t without the cancellation that a power would suffer at small t
        correction1 = -mx.expm1(t * math.log(beta1)) if beta1 > 0 else 1.0
        correction2 = -mx.expm1(t * math.log(beta2)) if beta2 > 0 else 1.0
        shares = applies * (1.0 - beta1), applies * (1.0 - beta2)
        factors = (1.0 - lr * self.weight_decay, lr / correction1, 1.0 / correction2, *shares)
        # In one array: otherwise MLX fuses their computation into the loops, and repeats it for every element.
        self._factors = mx.stack([mx.array(factor, mx.float32) for factor in factors])
        self._share = EvenShares()
        return super().apply_gradients(gradients, parameters)

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Create the moments `m` and `v`, both zero and of the parameter's shape."""
        state["m"] = mx.zeros_like(parameter)
        state["v"] = mx.zeros_like(parameter)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated parameter and write the updated moments into `state`."""
        arrays = gradient, parameter, state["m"], state["v"], self._factors
        updated, state["m"], state["v"] = self._share(adam_atan2, parameter.size, *arrays)
        return updated
