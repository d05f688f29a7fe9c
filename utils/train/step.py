"""One training step, from a batch to new weights: slice by slice forward and backward, then one update.

The pieces are compiled, what joins them is not. So a slice can be computed to its end, and its activations freed,
before the next one begins; and no sum over ranks is part of a compiled function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.optimizers import Optimizer
from mlx.utils import tree_flatten, tree_map

from models.act import Carry, draw_min_steps
from models.losses import ACTLossHead
from models.optimizers import update_if
from models.sparse_embedding import sign_sgd_rows
from utils.config import PretrainConfig
from utils.ranks.ranks import Ranks

Metrics = dict[str, mx.array]


class StepResult(NamedTuple):
    """The results of a training step, on the device.

    Attributes:
        metrics: sums over the global batch, float32 scalars: those that the loss head names, and `loss`.
        outputs: the outputs named in `keep`, of this rank's rows.
        finite: bool scalar. Where it is false, loss or gradients held an infinity or NaN, and the step left parameters,
            moments, puzzle embeddings and carry as they were. The random key, the step and the data have moved on.
        signals: the sum over ranks of `signal`, float32 scalar: how ranks learn of a Ctrl-C, see `Interruption.flag`.
    """

    metrics: Metrics
    outputs: dict[str, Any]
    finite: mx.array
    signals: mx.array


def make_train_step(
    head: ACTLossHead,
    optimizer: Optimizer,
    random: dict[str, mx.array],
    ema: dict[str, Any],
    config: PretrainConfig,
    ranks: Ranks,
    *,
    micro_batch_size: int | None = None,
    keep: Collection[str] = (),
) -> Callable[..., tuple[Carry, StepResult]]:
    """Make the function that takes one training step.

    Args:
        head: the model with its loss.
        optimizer: of the weights.
        random: the random key, under `key`.
        ema: the average of the trainable weights, a tree like theirs under `weights`; empty without `config.ema`.
        config: the training configuration.
        ranks: the processes that share each global batch.
        micro_batch_size: the rows of a slice, of each rank; None for all of them. The results are the same but for the
            order of sums in float32.
        keep: the outputs to return, see `TrainState`.

    Returns:
        A function of carry, batch, both learning rates and the signal. It updates the first four arguments, and returns
        the new carry and the results.
    """
    exploration = config.global_batch_size, head.model.config.halt_max_steps, head.model.config.halt_exploration_prob
    gradients_of_slice = make_gradients_of_slice(head, config.global_batch_size, set(keep) - {"gradients"})
    update = _make_update(head, optimizer, ema, config)

    def step(
        carry: Carry, batch: dict[str, mx.array], lr: mx.array, puzzle_emb_lr: mx.array, signal: mx.array
    ) -> tuple[Carry, StepResult]:
        random["key"], key = mx.random.split(random["key"])
        min_steps = draw_min_steps(key, *exploration)
        data = (carry, batch) if min_steps is None else (carry, batch, ranks.own_rows(min_steps))

        sums: Any = None
        slices: list[dict[str, Any]] = []
        num_rows = len(carry["halted"])
        for start in range(0, num_rows, micro_batch_size or num_rows):
            rows = slice(start, start + (micro_batch_size or num_rows))
            if slices:
                mx.eval(sums, slices)  # all that is left of the slices so far
            found, of_rows = gradients_of_slice(*tree_map(lambda array, rows=rows: array[rows], data))
            sums = found if sums is None else tree_map(mx.add, sums, found)
            del found  # nothing else refers to the sums so far and to these: MLX adds in place
            slices.append(of_rows)
        joined = slices[0] if len(slices) == 1 else tree_map(lambda *parts: mx.concatenate(list(parts)), *slices)

        (gradients, metrics), signals = ranks.sum((sums, signal))
        puzzles = {name: ranks.all_rows(array) for name, array in joined["puzzles"].items()}
        new_carry, finite = update(gradients, metrics["loss"], puzzles, joined["carry"], carry, lr, puzzle_emb_lr)

        outputs = joined["outputs"]
        if "gradients" in keep:
            outputs = outputs | {"gradients": (gradients, puzzles.get("gradients", mx.array(0.0)))}
        return new_carry, StepResult(metrics, outputs, finite, signals)

    return step


def make_gradients_of_slice(head: ACTLossHead, batch_size: int, keep: Collection[str] = ()) -> Callable[..., Any]:
    """Make the compiled function of carry, batch and least steps of some rows that goes forward and backward.

    It returns what is to be summed over slices: the gradients of the weights, and the metrics with the `loss`; and what
    rows have for themselves, arrays `[b, …]`: `carry`, `outputs` and, with a puzzle embedding, in `puzzles` the
    `identifiers`, the `rows` of the table and their `gradients`.
    """
    model = head.model

    def gradients_of_slice(carry: Carry, batch: dict[str, mx.array], min_steps: mx.array | None = None) -> Any:
        begun = model.begin_step(carry, batch)

        def loss_fn(leaves: dict) -> tuple[mx.array, Any]:
            head.update(leaves["weights"])
            loss, *rest = head(begun, leaves.get("puzzle_rows"), training=True, min_steps=min_steps)
            return loss / batch_size, (loss, *rest)

        weights = head.trainable_parameters()
        leaves = {"weights": weights}
        if model.puzzle_emb is not None:
            leaves["puzzle_rows"] = model.puzzle_rows(begun)
        (_, (loss, new_carry, metrics, outputs)), gradients = mx.value_and_grad(loss_fn)(leaves)
        head.update(weights)  # in place of the tracers that `loss_fn` has left

        puzzles = {}
        if model.puzzle_emb is not None:
            identifiers = begun["current_data"]["puzzle_identifiers"]
            puzzles = {"identifiers": identifiers, "rows": leaves["puzzle_rows"], "gradients": gradients["puzzle_rows"]}
        kept = {name: outputs[name] for name in keep}
        return (gradients["weights"], metrics | {"loss": loss}), {
            "carry": new_carry,
            "outputs": kept,
            "puzzles": puzzles,
        }

    return mx.compile(gradients_of_slice, inputs=[head.state])


def _make_update(
    head: ACTLossHead, optimizer: Optimizer, ema: dict[str, Any], config: PretrainConfig
) -> Callable[..., tuple[Carry, mx.array]]:
    """Make the compiled function that updates weights, puzzle embeddings and average, unless the step isn't finite.

    It takes the gradients of the global batch, its loss, what `puzzles` of `make_gradients_of_slice` holds of its
    rows, the new carry, the old one, and both learning rates; and returns the carry to go on with, and `finite`.
    """
    table = head.model.puzzle_emb

    def update(
        gradients: dict,
        loss: mx.array,
        puzzles: dict[str, mx.array],
        new_carry: Carry,
        carry: Carry,
        lr: mx.array,
        puzzle_emb_lr: mx.array,
    ) -> tuple[Carry, mx.array]:
        # Computed after the sums over ranks, so that it is the same on all. The squares, because AdamATan2's second
        # moment is made of them: once that is infinite, its parameter never changes again.
        finite = all_finite([loss, tree_map(mx.square, [gradients, puzzles.get("gradients", mx.array(0.0))])])

        optimizer.learning_rate = lr
        update_if(finite, optimizer, head, gradients)
        if table is not None:
            sign_sgd_rows(
                table.weights,
                puzzles["identifiers"],
                puzzles["rows"],
                mx.where(finite, puzzles["gradients"], 0.0),
                mx.where(finite, puzzle_emb_lr, 0.0),  # with both zero the rows stay as they are, bit for bit
                config.puzzle_emb_weight_decay,
            )
        if ema:
            ema["weights"] = moving_average(ema["weights"], head.trainable_parameters(), config.ema_rate, finite)
        return tree_map(lambda new, old: mx.where(finite, new, old), new_carry, carry), finite

    state = [head.state, optimizer.state, ema]
    return mx.compile(update, inputs=state, outputs=state)


def moving_average(average: Any, weights: Any, rate: float, moves: mx.array) -> Any:
    """Return rate · average + (1 - rate) · weights, of trees alike; the average as it is if `moves` is false."""
    return tree_map(lambda a, w: mx.where(moves, rate * a + (1.0 - rate) * w, a), average, weights)


def all_finite(arrays: Any) -> mx.array:
    """Compute whether a tree of arrays holds neither NaN nor infinity.

    By the sum of each array, which is cheap: one element that is not finite makes the sum so. Finite elements beyond
    1e30 may overflow the sum, and count as infinite too.

    Args:
        arrays: of any shapes and float dtypes.

    Returns:
        A bool scalar on the device.
    """
    # In float32: the sum of a large float16 array overflows by nothing but the number of its elements.
    found = [array.astype(mx.float32) for array in dict(tree_flatten(arrays)).values() if array is not None]
    # Columns first: they are added side by side, in half the time of the elements of a row.
    return mx.isfinite(mx.stack([(array.sum(axis=0) if array.ndim else array).sum() for array in found])).all()
