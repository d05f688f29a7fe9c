"""AdamATan2 against plain numpy in float64: another update would train another model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from models.optimizers import AdamATan2


def test_adam_atan2_follows_its_definition() -> None:
    rng = np.random.default_rng(0)
    parameter = rng.normal(size=(4, 3)).astype(np.float32)
    optimizer = AdamATan2(0.1, (0.9, 0.95), 0.2)
    values = {"weight": mx.array(parameter), "bias": mx.array(parameter[0])}
    p, m, v = parameter.astype(np.float64), np.zeros((4, 3)), np.zeros((4, 3))
    for t in range(1, 7):
        gradient = rng.normal(size=(4, 3)).astype(np.float32) * 10.0 ** -rng.integers(0, 9)
        gradient[0, 0] = 0.0  # atan2(0, 0) = 0: an unused parameter only decays
        lr = 0.1 / t
        optimizer.learning_rate = mx.array(lr)
        values = optimizer.apply_gradients({"weight": mx.array(gradient), "bias": mx.array(gradient[0])}, values)

        p *= 1 - lr * 0.2
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient.astype(np.float64) ** 2
        p -= lr / (1 - 0.9**t) * np.arctan2(m, np.sqrt(v) / np.sqrt(1 - 0.95**t))
        np.testing.assert_allclose(np.array(values["weight"]), p, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.array(values["bias"]), p[0], rtol=0, atol=1e-6)
