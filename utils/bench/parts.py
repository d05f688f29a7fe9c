"""How long the parts of a training step take: each alone, as often as a step needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from models.common import FORWARD_DTYPES, map_rows, random_keys
from models.kernels.cpu import linear, rms_norm
from models.layers import Block
from utils.bench.products import Seconds, seconds, total
from utils.train.state import TrainState, all_finite


class _Norm(nn.Module):
    """The residual sum and norm of a block."""

    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x + x, 1e-5)


def _forward_and_backward(module: nn.Module, x: mx.array) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Two compiled functions: `module` on x, and its gradient with respect to its parameters and x."""
    cotangent = mx.random.normal(x.shape).astype(x.dtype)
    parameters = module.trainable_parameters()
    mx.eval(cotangent, parameters)

    def apply(x: mx.array) -> mx.array:
        return map_rows(lambda x: (module(x),), x)[0]

    def weighted(parameters: dict, x: mx.array) -> mx.array:
        module.update(parameters)
        return (apply(x) * cotangent).sum()

    forward = mx.compile(lambda parameters, x: (module.update(parameters), apply(x))[1])
    gradient = mx.compile(mx.grad(weighted, argnums=(0, 1)))
    return lambda: forward(parameters, x), lambda: gradient(parameters, x)


class PartTimer:
    """Measures the parts of a training step of `state` on batches like `batch`."""

    def __init__(self, state: TrainState, batch: dict[str, mx.array]):
        head, model = state.head, state.head.model
        c, inner = model.config, model.inner
        carry = model.begin_step(model.initial_carry(batch), batch)
        rows = batch["inputs"].shape[0]
        x = mx.random.normal((rows, c.seq_len + c.puzzle_emb_len, c.hidden_size)).astype(
            FORWARD_DTYPES[c.forward_dtype]
        )
        weights = head.trainable_parameters()
        gradient = tree_map(lambda p: 1e-3 * mx.random.normal(p.shape), weights)
        puzzle_rows = model.puzzle_rows(carry)
        mx.eval(carry, x, gradient)

        # A block of its own, because a module is left with the tracers of what is compiled.
        theta = c.rope_theta if c.pos_encodings == "rope" else None
        keys = random_keys(mx.random.key(0))
        block = Block(c.hidden_size, c.num_heads, c.expansion, keys, rope_theta=theta, rms_norm_eps=c.rms_norm_eps)
        differentiated = c.L_layers + c.H_layers
        blocks = c.H_cycles * (c.L_cycles * c.L_layers + c.H_layers) - differentiated
        self._parts: dict[str, list[tuple[Callable[[], Any], int]]] = {}
        for name, module, each in (("attention", block.self_attn, 1), ("SwiGLU", block.mlp, 1), ("norms", _Norm(), 2)):
            forward, backward = _forward_and_backward(module, x)
            self._parts[name] = [(forward, blocks * each), (backward, differentiated * each)]

        def loss(weight: mx.array, z_H: mx.array) -> tuple[mx.array, Any]:
            """Output head, loss and metrics, for states that cost nothing."""
            q = mx.zeros((rows,))
            outputs = {"logits": linear(z_H[:, c.puzzle_emb_len :], weight), "q_halt_logits": q}
            return head.loss({**carry, "halted": mx.ones_like(carry["halted"])}, outputs | {"q_continue_logits": q})

        differentiated_loss = mx.compile(mx.value_and_grad(loss, argnums=(0, 1)))
        weight = inner.lm_head.weight.astype(x.dtype)
        self._parts["loss"] = [(lambda: differentiated_loss(weight, x), 1)]

        optimizer, arrays = state.optimizer, [state.optimizer.state, head.state]

        def update() -> None:
            optimizer.update_if(all_finite(tree_map(mx.square, gradient)), head, gradient)

        optimise = mx.compile(update, inputs=arrays, outputs=arrays)
        self._parts["optimiser"] = [(lambda: (optimise(), arrays)[1], 1)]

        if c.halt_max_steps > 1:
            embeddings = inner.input_embeddings(batch["inputs"], puzzle_rows)
            mx.eval(embeddings)
            target = mx.compile(lambda x: map_rows(inner.next_q_logits, x, x, embeddings), inputs=head.state)
            self._parts["target pass"] = [(lambda: target(x), 1)]
        self.measure()  # compiles

    def measure(self) -> dict[str, Seconds]:
        """What each part takes of a step."""
        return {name: total([seconds(f) * count for f, count in uses]) for name, uses in self._parts.items()}
