"""The forms for CPUs against numpy in float64, and against those for GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from models import kernels
from models.kernels import arctan2_of_square
from models.kernels.fused import METAL_HEAD_SIZES, attention, attention_form


def test_arctan2_is_as_accurate_as_float32() -> None:
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(size=100_000) * 10.0 ** rng.integers(-15, 4, 100_000), [0.0, 0.0, 1.0, -1.0, 1e-30]])
    x = np.concatenate([np.abs(rng.normal(size=100_000)) * 10.0 ** rng.integers(-15, 4, 100_000), [0, 2.0, 0, 0, 0]])
    y, square = y.astype(np.float32), np.square(x).astype(np.float32)
    found = np.array(arctan2_of_square(mx.array(y), mx.array(square)))
    np.testing.assert_allclose(found, np.arctan2(y, np.sqrt(square.astype(np.float64))), rtol=4e-7, atol=0)


def test_vectorised_exp2_is_as_accurate_as_float32() -> None:
    x = np.concatenate([np.linspace(-126, 126, 200_001), [0.0, -0.0, 1e-30, -1e-8]]).astype(np.float32)
    out = np.array(kernels.cpu.vectorised_exp2(mx.array(x)), np.float64)
    np.testing.assert_allclose(out, np.exp2(x.astype(np.float64)), rtol=2e-7)
    extremes = np.array(kernels.cpu.vectorised_exp2(mx.array([-1e30, -200.0, -float("inf")])))
    assert (extremes >= 0).all()
    assert (extremes < 1.2e-38).all()


def gate_of_swiglu(gate: mx.array) -> mx.array:
    """SwiGLU whose other half is 1."""
    weight = mx.array([[1.0, 0.0], [0.0, 1.0]])  # the first column is the gate, the second is multiplied with it
    return kernels.swiglu(mx.stack([gate, mx.ones_like(gate)], axis=-1), weight)[:, 0]


@pytest.mark.parametrize("silu", [kernels.silu, gate_of_swiglu], ids=["silu", "swiglu"])
def test_silu_and_its_derivative(silu: Callable[[mx.array], mx.array]) -> None:
    x = np.linspace(-30, 30, 10_001).astype(np.float32)
    sigmoid = 1 / (1 + np.exp(-x.astype(np.float64)))
    value, gradient = mx.value_and_grad(lambda a: silu(a).sum())(mx.array(x))
    np.testing.assert_allclose(np.array(silu(mx.array(x))), x * sigmoid, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(np.array(gradient), sigmoid + x * sigmoid * (1 - sigmoid), rtol=1e-5, atol=1e-6)
    large = mx.array([1e2, 1e4, 1e6, 1e9, 1e20, -1e2, -1e4, -1e6, -1e9])
    np.testing.assert_allclose(np.array(silu(large)), np.maximum(np.array(large), 0), rtol=1e-6, atol=1e-20)
    assert np.isfinite(value.item())


@pytest.mark.parametrize("form", ["swiglu", "rms_norm", "silu"])
def test_forms_for_cpus_agree_with_those_for_gpus(form: str) -> None:
    """A model trained on a Mac would be another one on a Linux server."""
    x = mx.random.normal((3, 5, 8), key=mx.random.key(0)) * 3
    weight = mx.random.normal((12, 8), key=mx.random.key(1))
    cotangent = mx.random.normal((3, 5, 6 if form == "swiglu" else 8), key=mx.random.key(2))

    def both(x: mx.array, weight: mx.array) -> mx.array:
        of_x = {"rms_norm": lambda x: kernels.rms_norm(x, 1e-5), "silu": kernels.silu}
        y = kernels.swiglu(x, weight) if form == "swiglu" else of_x[form](x) + 0 * weight.sum()
        return (y * cotangent).sum()

    value, gradients = mx.value_and_grad(both, (0, 1))(x, weight)
    mx.eval(value, gradients)
    with kernels.plain_forms():
        expected_value, expected = mx.value_and_grad(both, (0, 1))(x, weight)
    np.testing.assert_allclose(value.item(), expected_value.item(), rtol=1e-5)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-5, atol=2e-5)


def test_attention_on_the_cpu_agrees_with_the_fused_kernel_and_its_gradient() -> None:
    q, k, v, weight = (mx.random.normal((2, 3, 9, 8), key=mx.random.key(i)) * 3 for i in range(4))

    def ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (kernels.attention(q, k, v, 0.35) * weight).sum()

    def fused(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return (mx.fast.scaled_dot_product_attention(q, k, v, scale=0.35) * weight).sum()

    for a, b in zip(mx.grad(ours, (0, 1, 2))(q, k, v), mx.grad(fused, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=0, atol=2e-5)
    np.testing.assert_allclose(ours(q, k, v).item(), fused(q, k, v).item(), rtol=1e-5)


@pytest.mark.parametrize("head_size", [8, 32, 48, 64, 72, 80, 96, 128, 160, 192, 256, 512])
def test_metal_takes_its_fused_kernel_for_the_heads_that_have_one(head_size: int) -> None:
    # Without it the scores of a training step on ARC would not fit a Mac; demanded where there is none, it is an error.
    expected = "fused" if head_size in (64, 72, 80, 96, 128, 192, 256) else "chosen"
    assert attention_form("metal", head_size, 82) == expected
    assert attention_form("metal", head_size, 9) == expected
    assert attention_form("cuda", head_size, 82) == "chosen"
    assert attention_form("cpu", head_size, 82) == "chosen"


def test_metal_takes_no_kernel_without_a_gradient_for_the_smallest_puzzles() -> None:
    assert {attention_form("metal", head_size, tokens) for head_size in METAL_HEAD_SIZES for tokens in (1, 8)} == {
        "scores"
    }
    assert attention_form("metal", 32, 8) == "chosen"


def test_attention_demands_the_kernel_on_metal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    q = mx.random.normal((1, 2, 12, 64), key=mx.random.key(0))
    seen = []

    def noted(*arrays: mx.array, scale: float, force_fused: bool) -> mx.array:
        seen.append(force_fused)
        return arrays[0]

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", noted)
    for device in ("metal", "cuda", "cpu"):
        monkeypatch.setattr(kernels, "device_kind", lambda device=device: device)
        with kernels.plain_forms():
            kernels.attention(q, q, q, 0.1)
    assert seen == [True, False, False]


def test_attention_by_its_scores_agrees_with_that_of_mlx() -> None:
    q, k, v = (mx.random.normal((2, 3, 8, 64), key=mx.random.key(i)) for i in range(3))

    def gradients(form: Any) -> Any:
        return mx.grad(lambda q, k, v: mx.square(attention(q, k, v, 0.125, form)).sum(), (0, 1, 2))(q, k, v)

    for found, expected in zip(gradients("scores"), gradients("chosen"), strict=True):
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=0, atol=1e-5)
