"""How parameters move: the learning rate schedule and AdamATan2. The puzzle embedding's optimiser stands with its
table, in models/sparse_embedding.py."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from models.common import cpu_streams, distinct_shape, on_gpu


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


# arctan(t) ≈ t · P(t²) on [0, 1], lowest power first: a Chebyshev fit in t², as accurate as float32 (1.1e-7)
_ARCTAN_P = (
    1.0,
    -0.3333306610584259,
    0.19992484152317047,
    -0.14202570915222168,
    0.10636754333972931,
    -0.07495445758104324,
    0.042587608098983765,
    -0.016005029901862144,
    0.0028340641874819994,
)
_SMALLEST_NORMAL = 1.1754944e-38  # of float32; added to a denominator, it makes 0 / 0 zero and changes nothing else


def arctan2_of_square(y: mx.array, square: mx.array) -> mx.array:
    """atan2(y, sqrt(square)) of float32 arrays, with a relative error below 4e-7; atan2(0, 0) = 0.

    On a CPU y² has to be a normal float32 number, 1e-19 < |y| < 1e19: smaller ones give too little, larger ones 0.

    On a GPU this is MLX's arctan2. On a CPU that calls the scalar one of the C library, and the form here is several
    times faster: half the angle has the tangent y / (x + sqrt(x² + y²)), which needs no case distinctions.
    """
    if on_gpu():
        return mx.arctan2(y, mx.sqrt(square))
    # Clipped for the case that both squares vanish and y does not.
    t = mx.clip(y / (mx.sqrt(square) + mx.sqrt(square + y * y) + _SMALLEST_NORMAL), -1.0, 1.0)
    t = mx.contiguous(t)  # no copy: a border between two fused kernels, each small enough to be vectorised
    c, t2 = _ARCTAN_P, t * t
    t4 = t2 * t2
    high = (c[4] + c[5] * t2) + t4 * (c[6] + c[7] * t2 + c[8] * t4)
    return (((c[0] + c[1] * t2) + t4 * (c[2] + c[3] * t2)) + (t4 * t4) * high) * (2.0 * t)


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
        self._applies = mx.array(True)
        self._factors: list[mx.array] = []
        self._elements: list[int] = []  # given to each stream so far

    def update_if(self, condition: mx.array, model: nn.Module, gradients: dict) -> None:
        """`update`, if `condition` (a bool scalar on the device) is true; otherwise parameters, moments and the count
        of updates stay as they are, whatever the gradients hold."""
        updates = self.step
        self._applies = condition
        self.update(model, gradients)
        self._applies = mx.array(True)
        self.state["step"] = mx.where(condition, self.step, updates)

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        """The updated parameters, a tree like both arguments; the moments in `state` move along."""
        beta1, beta2 = self.betas
        t = self.step.astype(mx.float32) + 1.0
        applies = self._applies.astype(mx.float32)
        lr = self.learning_rate * applies  # all rates zero where the update shall not take place
        # 1 - β^t without the cancellation that a power would suffer at small t
        correction1 = -mx.expm1(t * math.log(beta1)) if beta1 > 0 else 1.0
        correction2 = -mx.expm1(t * math.log(beta2)) if beta2 > 0 else 1.0
        factors = (1.0 - lr * self.weight_decay, lr / correction1, 1.0 / correction2)
        # Through one array, because MLX would otherwise fuse all this into the loops, and compute it for every element.
        values = mx.stack([mx.array(factor, mx.float32) for factor in factors] + [applies])
        self._factors = [values[i] for i in range(4)]
        self._elements = [] if on_gpu() else [0] * len(cpu_streams())
        return super().apply_gradients(gradients, parameters)

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Create the moments `m` and `v`, both zero and of the parameter's shape."""
        state["m"] = mx.zeros_like(parameter)
        state["v"] = mx.zeros_like(parameter)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated parameter and write the updated moments into `state`."""
        if on_gpu():
            return self._updated(gradient, parameter, state)
        least = self._elements.index(min(self._elements))
        self._elements[least] += parameter.size
        shape, own = parameter.shape, distinct_shape(parameter.shape, cpu_streams()[least])
        with mx.stream(cpu_streams()[least]):
            state["m"], state["v"] = state["m"].reshape(own), state["v"].reshape(own)
            updated = self._updated(gradient.reshape(own), parameter.reshape(own), state)
            state["m"], state["v"] = state["m"].reshape(shape), state["v"].reshape(shape)
            return updated.reshape(shape)

    def _updated(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        keep, rate, correction, applies = self._factors
        beta1, beta2 = self.betas
        gradient = mx.where(self._applies, gradient, 0.0)  # a NaN would survive the product with zero
        m = state["m"] + (applies * (1.0 - beta1)) * (gradient - state["m"])
        v = state["v"] + (applies * (1.0 - beta2)) * (mx.square(gradient) - state["v"])
        state["m"], state["v"] = m, v
        return parameter * keep - rate * arctan2_of_square(m, v * correction)
