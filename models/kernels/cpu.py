"""The functions of `models.kernels` in the form that a Linux CPU computes fastest.

MLX's CPU backend calls the scalar exponential of the C library, at some ten nanoseconds an element, and fuses
elementwise operations into C++ loops that the compiler vectorises only if they are free of library calls and of
broadcast rows. The forms below are; their derivatives are written out, because the bits of a power of two have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from models.kernels.streams import distinct_shape

_LOG2_E = 1.0 / math.log(2.0)
# 2^f on |f| ≤ 1/2: least squares on the relative error, at Chebyshev points; 2e-9 before rounding
_EXP2_P = (
    1.0000000005920209,
    0.69314720560051,
    0.24022646608714168,
    0.05550328997517005,
    0.009618519534335871,
    0.0013399860363395102,
    0.00015337576838842464,
)
_EXP2_MIN, _EXP2_MAX = -126, 126  # beyond these the result leaves the normal float32 numbers
_ROUNDS = 1.5 * 2.0**23  # adding it to a small float32 leaves no digits after the point: its last bits are the integer
_ROUNDS_BITS = 0x4B400000  # of this float32, seen as an integer; those of a sum with k are k more
_MANTISSA_BITS, _EXPONENT_OF_ONE = 23, 127 << 23


def vectorised_exp2(x: mx.array) -> mx.array:
    """Compute 2^x with a relative error below 2e-7; `x`, float32 of any shape, is first clipped to [-126, 126]."""
    x = mx.minimum(mx.maximum(x, float(_EXP2_MIN)), float(_EXP2_MAX))
    return _exp2(x, x + _ROUNDS)


def _exp2(x: mx.array, shifted: mx.array) -> mx.array:
    """Compute 2^x for |x| < 2^22, clipped to 2^-126 and 2^126, from x and x + _ROUNDS.

    x = k + f: a polynomial gives 2^f, and k is moved from the last bits of `shifted` into the exponent of a float32.
    """
    # The sum with a second constant, not a difference with the first: a constant that two kernels share is formed as an
    # array, and neither kernel is vectorised any more. Pairs of terms, because kernels end at eleven levels.
    f = x - (shifted + -_ROUNDS)
    c, square = _EXP2_P, f * f
    low = (c[0] + c[1] * f) + square * (c[2] + c[3] * f)
    high = (c[4] + c[5] * f) + square * c[6]
    integer = mx.minimum(mx.maximum(shifted.view(mx.int32), _ROUNDS_BITS + _EXP2_MIN), _ROUNDS_BITS + _EXP2_MAX)
    power_of_two = ((integer << _MANTISSA_BITS) + _EXPONENT_OF_ONE).view(mx.float32)
    return (low + (square * square) * high) * power_of_two


def _differentiable(
    function: Callable[..., mx.array], derivative: Callable[..., tuple[mx.array, ...]], *arrays: mx.array
) -> mx.array:
    """Return `function(*arrays)`, differentiated by `derivative(cotangent, output, *arrays)` on the same stream."""
    stream = mx.default_stream(mx.default_device())
    custom = mx.custom_function(function)

    @custom.vjp
    def vjp(
        primals: mx.array | tuple[mx.array, ...], cotangent: mx.array, output: mx.array
    ) -> mx.array | tuple[mx.array, ...]:
        with mx.stream(stream):  # otherwise it would run on the stream of the caller of the backward pass
            if isinstance(primals, mx.array):
                return derivative(cotangent, output, primals)[0]
            return derivative(cotangent, output, *primals)

    result: mx.array = custom(*arrays)  # type: ignore[assignment]  # object in its stub
    return result


def _elementwise(
    function: Callable[..., mx.array], derivative: Callable[..., tuple[mx.array, ...]], *arrays: mx.array
) -> mx.array:
    """Apply `_differentiable` to arrays of one shape, in a shape that no other stream computes with."""
    own = distinct_shape(arrays[0].shape, mx.default_stream(mx.cpu))
    return _differentiable(function, derivative, *(array.reshape(own) for array in arrays)).reshape(arrays[0].shape)


def _linear_derivative(cotangent: mx.array, _: mx.array, x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    rows = (array.reshape(-1, array.shape[-1]) for array in (cotangent, x))
    return cotangent @ weight, next(rows).T @ next(rows)


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """Compute x Wᵀ, with a gradient of the weight that is contiguous.

    MLX's own is a transposed view, slow to combine element by element with the moments of the optimiser.
    """
    return _differentiable(lambda x, weight: x @ weight.T, _linear_derivative, x, weight)


def _exp_of_minus(x: mx.array) -> mx.array:
    # The same product twice, in two ways: what two kernels share is written to memory in a third. No clipping before
    # the sum: for |x| from 2^22 to 1e13 the fraction is wrong and finite, and 2^±126 makes the sigmoid 0 or 1 all the
    # same.
    return _exp2(-_LOG2_E * x, x * -_LOG2_E + _ROUNDS)


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return (gate * up) / (1.0 + _exp_of_minus(gate))


def _swiglu_derivative(cotangent: mx.array, _: mx.array, gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = mx.contiguous(1.0 / (1.0 + _exp_of_minus(gate)))  # formed once, used by both
    weighted = cotangent * sigmoid
    return weighted * up * (1.0 + gate * (1.0 - sigmoid)), weighted * gate


def swiglu(x: mx.array, gate_up_weight: mx.array) -> mx.array:
    """Compute silu(x Gᵀ) · x Uᵀ in float32.

    As two matmuls, because the halves of one array are not contiguous.
    """
    gate, up = (linear(x, weight).astype(mx.float32) for weight in mx.split(gate_up_weight, 2))
    return _elementwise(_swiglu, _swiglu_derivative, gate, up).astype(x.dtype)


def _silu(x: mx.array) -> mx.array:
    return x / (1.0 + _exp_of_minus(x))


def _silu_derivative(cotangent: mx.array, _: mx.array, x: mx.array) -> tuple[mx.array]:
    sigmoid = mx.contiguous(1.0 / (1.0 + _exp_of_minus(x)))  # formed once, used twice
    return (cotangent * sigmoid * (1.0 + x * (1.0 - sigmoid)),)


def silu(x: mx.array) -> mx.array:
    """Compute x · sigmoid(x) in float32."""
    return _elementwise(_silu, _silu_derivative, x.astype(mx.float32)).astype(x.dtype)


def _softmax(scores: mx.array, scale: float) -> mx.array:
    """Compute the softmax of scale · scores over the last axis, scale > 0."""

    def softmax(x: mx.array) -> mx.array:
        weights = vectorised_exp2((x - mx.max(x, axis=-1, keepdims=True)) * (scale * _LOG2_E))
        return weights * (1.0 / mx.sum(weights, axis=-1))[..., None]

    def derivative(cotangent: mx.array, softmax: mx.array, _: mx.array) -> tuple[mx.array]:
        weighted = cotangent * softmax
        return ((weighted - softmax * mx.sum(weighted, axis=-1)[..., None]) * scale,)

    return _elementwise(softmax, derivative, scores)


def attention(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
    """Compute softmax(scale · q kᵀ) v. The weights `[b, h, t, t]` are formed, as MLX itself does on a CPU."""
    scores = q @ k.swapaxes(-1, -2)  # (b h tq t)
    weights = _softmax(scores.astype(mx.float32), scale)
    return weights.astype(q.dtype) @ v


def rms_norm(x: mx.array, eps: float) -> mx.array:
    """Compute x / sqrt(mean(x²) + eps) over the last axis in float32."""

    def norm(x: mx.array) -> mx.array:
        return x * mx.rsqrt(mx.mean(mx.square(x), axis=-1) + eps)[..., None]

    def derivative(cotangent: mx.array, output: mx.array, x: mx.array) -> tuple[mx.array]:
        scale = mx.rsqrt(mx.mean(mx.square(x), axis=-1) + eps)[..., None]
        return ((cotangent - output * mx.mean(cotangent * output, axis=-1)[..., None]) * scale,)

    return _elementwise(norm, derivative, x.astype(mx.float32)).astype(x.dtype)


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
    """Compute atan2(y, sqrt(square)) of float32 arrays, with a relative error below 4e-7; atan2(0, 0) = 0.

    y² has to be a normal float32 number, 1e-19 < |y| < 1e19: smaller ones give too little, larger ones 0. Half the
    angle has the tangent y / (x + sqrt(x² + y²)), which needs no case distinctions.
    """
    # Clipped for the case that both squares vanish and y does not.
    t = mx.clip(y / (mx.sqrt(square) + mx.sqrt(square + y * y) + _SMALLEST_NORMAL), -1.0, 1.0)
    t = mx.contiguous(t)  # no copy: a border between two fused kernels, each small enough to be vectorised
    c, t2 = _ARCTAN_P, t * t
    t4 = t2 * t2
    high = (c[4] + c[5] * t2) + t4 * (c[6] + c[7] * t2 + c[8] * t4)
    return (((c[0] + c[1] * t2) + t4 * (c[2] + c[3] * t2)) + (t4 * t4) * high) * (2.0 * t)
