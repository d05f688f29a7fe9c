"""The bench says how far from the machine's limit a step is: the matmuls of which the limit is made must be counted
right."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from models.layers import swiglu_width
from tests.helpers.configs import TINY_TRM, TINY_URM, pretrain_config, random_batch, train_state
from utils.bench.measure import step_products
from utils.bench.products import Product, ProductTimer, matmuls


def blocks_of(c: Any) -> tuple[int, int, bool]:
    """Blocks in an outer step, those of them that are differentiated, and whether there is a second pass."""
    if "num_layers" in type(c).model_fields:  # URM
        return c.H_cycles * c.L_cycles * c.num_layers, c.L_cycles * c.num_layers, False
    if "mlp_t" in type(c).model_fields:  # TRM
        cycle = (c.L_cycles + 1) * c.L_layers
        return c.H_cycles * cycle, cycle, False
    return c.H_cycles * (c.L_cycles * c.L_layers + c.H_layers), c.L_layers + c.H_layers, c.halt_max_steps > 1


def expected_flops(config: Any, rows: int) -> dict[str, int]:
    """What the matmuls come to, by hand."""
    c, s = config, config.seq_len
    d, t, inter = c.hidden_size, c.num_tokens, swiglu_width(c.hidden_size, c.expansion)
    attention = t * d * (3 * d + d) + 2 * t * t * d
    mixer = 3 * t * d * swiglu_width(t, c.expansion) if getattr(c, "mlp_t", False) else attention
    block = 2 * rows * (mixer + t * d * (2 * inter) + t * inter * d)
    q_head = 2 * rows * d * 2
    heads = 2 * rows * s * d * c.vocab_size + q_head
    blocks, differentiated, second_pass = blocks_of(c)
    evaluation = blocks * block + heads
    # Each differentiated matmul has two gradients. The target pass needs no logits.
    backward = 2 * (differentiated * block + heads)
    target = blocks * block + q_head if second_pass else 0
    return {"train": evaluation + backward + target, "eval": evaluation}


@pytest.mark.parametrize(
    "arch",
    [
        TINY_TRM,
        TINY_TRM | {"mlp_t": True, "pos_encodings": "none", "puzzle_emb_len": 0},
        TINY_URM,
        {"H_cycles": 2, "L_cycles": 2, "H_layers": 2, "L_layers": 1, "forward_dtype": "bfloat16"},
        {"H_cycles": 1, "L_cycles": 3, "H_layers": 1, "L_layers": 2, "puzzle_emb_ndim": 0, "pos_encodings": "learned"},
        {"halt_max_steps": 1},
    ],
)
def test_the_products_of_a_step_are_those_of_the_equations(arch: dict[str, Any]) -> None:
    """A bound that counts too much or too little would make the step look better or worse than it is."""
    state = train_state(pretrain_config(arch))
    counted = step_products(state, random_batch(0))
    found = {kind: sum(p.flops * count for p, count in counts.items()) for kind, counts in counted.items()}
    assert found == expected_flops(state.head.model.config, rows=8)


def test_products_are_told_apart_by_shape_layout_and_dtype() -> None:
    """A machine multiplies at different rates what lies differently in memory, and half-precision numbers."""
    x, y, weight = mx.zeros((3, 5, 8)), mx.zeros((15, 6)), mx.zeros((6, 8))
    half = mx.bfloat16

    def function(x: mx.array, y: mx.array, weight: mx.array) -> list[mx.array]:
        low = weight.T.astype(half)  # lies as `weight` does
        return [x @ weight.T, mx.square(x) @ weight.T, x.astype(half) @ low, y @ weight, y.T @ x.reshape(15, 8)]

    assert matmuls(function, x, y, weight) == {
        Product(1, 15, 8, 6, "nt", mx.float32): 2,
        Product(1, 15, 8, 6, "nt", half): 1,
        Product(1, 15, 6, 8, "nn", mx.float32): 1,
        Product(1, 6, 15, 8, "tn", mx.float32): 1,
    }


def test_products_that_no_result_needs_are_not_counted() -> None:
    """The compiled step leaves them out as well."""

    def function(x: mx.array) -> mx.array:
        return [x @ x, x + 1][1]

    assert not matmuls(function, mx.zeros((4, 4)))


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_layout_is_timed(layout: str, batch: int) -> None:
    """An architecture may hold any of them."""
    product = Product(batch, 6, 7, 8, layout, mx.float32)
    times = ProductTimer([product]).measure()
    assert times[product].wall > 0
