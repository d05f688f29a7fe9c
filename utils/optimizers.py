"""How parameters move: the learning rate schedule and AdamATan2. The puzzle embedding's optimiser stands with its
table, in models/sparse_embedding.py."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from models.common import on_gpu


def learning_rate(step: int, *, base: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Linear warm-up to `base`, then half a cosine down to `base · min_ratio` at `total_steps`.

    Args:
        step: the step about to be taken, counted from 1.
        base: the peak rate.
        warmup_steps: steps of the warm-up.
        total_steps: steps of the whole run.
        min_ratio: last rate / peak rate.
    """
    if step < warmup_steps:
        return base * step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))


# arctan(t) ≈ t · P(t²) on [0, 1]: a Chebyshev fit in t², as accurate as float32 (1.1e-7)
_ARCTAN_P = (
    0.0028340641874819994,
    -0.016005029901862144,
    0.042587608098983765,
    -0.07495445758104324,
    0.10636754333972931,
    -0.14202570915222168,
    0.19992484152317047,
    -0.3333306610584259,
    1.0,
)
_SMALLEST_NORMAL = 1.1754944e-38  # of float32; added to a denominator, it makes 0 / 0 zero and changes nothing else


def arctan2_right(y: mx.array, x: mx.array) -> mx.array:
    """atan2(y, x) of float32 arrays where x ≥ 0, the half plane that AdamATan2 needs; atan2(0, 0) = 0.

    On a GPU this is MLX's arctan2. On a CPU that calls the scalar one of the C library, and a polynomial is ten times
    faster.
    """
    if on_gpu():
        return mx.arctan2(y, x)
    # No `where` below: a choice between two results keeps the C++ compiler from vectorising the fused kernel.
    magnitude = mx.abs(y)
    t = mx.minimum(magnitude, x) / (mx.maximum(magnitude, x) + _SMALLEST_NORMAL)  # in [0, 1]
    square = t * t
    polynomial = square * _ARCTAN_P[0] + _ARCTAN_P[1]
    for coefficient in _ARCTAN_P[2:]:
        polynomial = polynomial * square + coefficient
    angle = polynomial * t
    steep = (magnitude > x).astype(mx.float32)
    return mx.sign(y) * (angle + steep * (0.5 * math.pi - 2.0 * angle))


class AdamATan2(optim.Optimizer):
    """Adam with atan2 in place of the division, which needs no epsilon and is invariant to the scale of the gradient
    (arXiv 2407.05872, section 3.3; here without further scale factors, as in the HRM code).

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
        self._applies: mx.array | None = None

    def update_if(self, condition: mx.array, model: nn.Module, gradients: dict) -> None:
        """`update`, if `condition` (a bool scalar on the device) is true; otherwise parameters, moments and the count
        of updates stay as they are, whatever the gradients hold."""
        updates = self.step
        self._applies = condition
        self.update(model, gradients)
        self._applies = None
        self.state["step"] = mx.where(condition, self.step, updates)

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Create the moments `m` and `v`, both zero and of the parameter's shape."""
        state["m"] = mx.zeros_like(parameter)
        state["v"] = mx.zeros_like(parameter)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated parameter and write the updated moments into `state`."""
        lr = self.learning_rate
        beta1, beta2 = self.betas
        t = self.step.astype(mx.float32)
        # 1 - β^t without the cancellation that a power would suffer at small t
        correction1 = -mx.expm1(t * math.log(beta1)) if beta1 > 0 else 1.0
        correction2 = -mx.expm1(t * math.log(beta2)) if beta2 > 0 else 1.0

        applies: float | mx.array = 1.0
        if self._applies is not None:  # all rates zero, and no NaN that would survive the product with zero
            applies = self._applies.astype(mx.float32)
            gradient = mx.where(self._applies, gradient, 0.0)
            lr = lr * applies

        m = state["m"] + (applies * (1.0 - beta1)) * (gradient - state["m"])
        v = state["v"] + (applies * (1.0 - beta2)) * (mx.square(gradient) - state["v"])
        state["m"], state["v"] = m, v
        update = arctan2_right(m, mx.sqrt(v / correction2))
        return parameter * (1.0 - lr * self.weight_decay) - (lr / correction1) * update
