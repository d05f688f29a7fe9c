"""The loops for Linux CPUs against numpy in float64, and against plain MLX, which GPUs run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from models import kernels
from models.kernels.fused import METAL_HEAD_SIZES, attention, attention_form
from tests.helpers.fresh_python import needs_native
from utils.bench.products import least, seconds


def atan2_of_update(y: np.ndarray, square: np.ndarray) -> np.ndarray:
    """What an update subtracts where the first moment becomes `y` and the second is `square`."""
    zeros = mx.zeros(y.shape)
    # keep, rate, correction, and the shares of the gradient in the moments
    factors = mx.array([1.0, -1.0, 1.0, 1.0, 0.0])
    return np.array(kernels.adam_atan2(mx.array(y), zeros, zeros, mx.array(square), factors)[0])


def test_atan2_of_an_update_is_as_accurate_as_float32() -> None:
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(size=100_000) * 10.0 ** rng.integers(-15, 4, 100_000), [0.0, 0.0, 1.0, -1.0, 1e-30]])
    x = np.concatenate([np.abs(rng.normal(size=100_000)) * 10.0 ** rng.integers(-15, 4, 100_000), [0, 2.0, 0, 0, 0]])
    y, square = y.astype(np.float32), np.square(x).astype(np.float32)
    expected = np.arctan2(y, np.sqrt(square.astype(np.float64)))
    np.testing.assert_allclose(atan2_of_update(y, square), expected, rtol=4e-7, atol=0)


def test_an_update_that_does_not_take_place_changes_nothing() -> None:
    """A step that is not finite would destroy the weights that it is to leave alone."""
    p, m, v = mx.array([1.0, -2.0]), mx.array([0.5, -0.0]), mx.array([0.25, 3.0])
    gradient = mx.array([float("nan"), float("inf")])
    for found, before in zip(
        kernels.adam_atan2(gradient, p, m, v, mx.array([1.0, 0, 1, 0, 0])), (p, m, v), strict=True
    ):
        assert np.array(found).tobytes() == np.array(before).tobytes()


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


WEIGHT = mx.random.normal((12, 8), key=mx.random.key(1))
FORMS: dict[str, tuple[Callable[..., mx.array], list[tuple[int, ...]]]] = {
    "linear": (lambda x: kernels.linear(x, WEIGHT), [(3, 5, 8)]),
    "weight of linear": (lambda w: kernels.linear(mx.ones((3, 5, 8)) * mx.arange(8), w), [(12, 8)]),
    "swiglu": (lambda x: kernels.swiglu(x, WEIGHT), [(3, 5, 8)]),
    "silu": (kernels.silu, [(3, 5, 8)]),
    "add_rms_norm": (lambda x, y: kernels.add_rms_norm(x, y, 1e-5), [(3, 5, 8), (3, 5, 8)]),
    "attention": (lambda x, w: kernels.attention(x, w, 3, 10000.0), [(2, 9, 24), (72, 24)]),
    "attention without positions": (lambda x, w: kernels.attention(x, w, 2, None), [(2, 9, 10), (30, 10)]),
    "attention in blocks": (lambda x, w: kernels.attention(x, w, 1, 10000.0), [(1, 300, 4), (12, 4)]),
}


@needs_native
@pytest.mark.parametrize("form", FORMS)
def test_loops_agree_with_plain_mlx(form: str) -> None:
    """A model trained on a Mac would be another one on a Linux server."""
    function, shapes = FORMS[form]
    arrays = [mx.random.normal(shape, key=mx.random.key(10 + i)) for i, shape in enumerate(shapes)]
    arrays[1:] = [array * array.shape[-1] ** -0.5 for array in arrays[1:]]  # the deviation of weights
    places = list(range(len(arrays)))

    def weighted(*arrays: mx.array) -> mx.array:
        y = function(*arrays)
        return (y * mx.random.normal(y.shape, key=mx.random.key(2))).sum()

    value, gradients = mx.value_and_grad(weighted, places)(*arrays)
    mx.eval(value, gradients)
    with kernels.plain_forms():
        expected_value, expected = mx.value_and_grad(weighted, places)(*arrays)
        mx.eval(expected)
    np.testing.assert_allclose(value.item(), expected_value.item(), rtol=1e-5, atol=1e-5)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-5, atol=5e-5)
        assert np.abs(np.array(wanted)).max() > 0.1


@pytest.mark.parametrize(("shape", "dtype"), [((8,), mx.float32), ((1, 5, 8), mx.float32), ((3, 5, 8), mx.bfloat16)])
def test_a_mixer_may_return_another_shape_or_dtype(shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    """Loops that take the sizes of the first array for those of the second would read beyond its end."""
    x, y = (
        mx.random.normal((3, 5, 8), key=mx.random.key(0)),
        mx.random.normal(shape, key=mx.random.key(1)).astype(dtype),
    )
    expected = mx.fast.rms_norm(x + y, None, 1e-5)
    np.testing.assert_allclose(np.array(kernels.add_rms_norm(x, y, 1e-5)), np.array(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("num_heads", "rope_theta"), [(3, None), (4, 10000.0)])
def test_heads_that_do_not_fit_are_refused(num_heads: int, rope_theta: float | None) -> None:
    with pytest.raises(ValueError, match=f"{num_heads} heads of 20"):
        kernels.attention(mx.zeros((1, 2, 20)), mx.zeros((60, 20)), num_heads, rope_theta)


@needs_native
def test_nan_is_not_hidden() -> None:
    """A diverged run would go on, and its checkpoints would be worth nothing."""

    def squares(function: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
        return mx.square(function(*arrays)).sum()

    for form, (function, shapes) in FORMS.items():
        arrays = [mx.ones(shape) for shape in shapes]
        arrays[0][(0,) * len(shapes[0])] = float("nan")
        assert mx.isnan(function(*arrays)).any().item(), form
        assert mx.isnan(mx.grad(squares, 1)(function, *arrays)).any().item(), form


@needs_native
def test_peaked_attention_takes_no_longer() -> None:
    """Subnormal weights of a softmax made a step five times slower, once a model was sure of itself."""
    x, weight = mx.random.normal((1, 256, 64), key=mx.random.key(0)), mx.random.normal((192, 64), key=mx.random.key(1))

    def processor_seconds(scale: float) -> float:
        gradient = mx.grad(lambda x: kernels.attention(x * scale, weight, 1, 10000.0).sum())
        return least([seconds(lambda: gradient(x)) for _ in range(5)]).cpu

    assert processor_seconds(1.5) < 1.5 * processor_seconds(0.1)


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
    x, weight = mx.zeros((1, 12, 128)), mx.zeros((384, 128))
    seen = []

    def noted(*arrays: mx.array, scale: float, force_fused: bool) -> mx.array:
        seen.append(force_fused)
        return arrays[0]

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", noted)
    for device in ("metal", "cuda", "cpu"):
        monkeypatch.setattr(kernels, "device_kind", lambda device=device: device)
        with kernels.plain_forms():
            kernels.attention(x, weight, 2, None)
    assert seen == [True, False, False]


def test_attention_by_its_scores_agrees_with_that_of_mlx() -> None:
    q, k, v = (mx.random.normal((2, 3, 8, 64), key=mx.random.key(i)) for i in range(3))

    def gradients(form: Any) -> Any:
        return mx.grad(lambda q, k, v: mx.square(attention(q, k, v, 0.125, form)).sum(), (0, 1, 2))(q, k, v)

    for found, expected in zip(gradients("scores"), gradients("chosen"), strict=True):
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=0, atol=1e-5)
