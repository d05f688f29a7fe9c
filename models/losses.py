"""The losses of HRM: cross entropy of the tokens, binary cross entropy of the Q values; and the metrics beside them.

A new token loss is a function like `stablemax_cross_entropy` in its own file: `arch.loss.loss_type=file@function`.
A new loss head is a subclass of `ACTLossHead`: `arch.loss.name=file@Class`. Further keys of `arch.loss` reach the
head's constructor, which passes those that it does not take itself on to the token loss.
Shapes in comments: b batch, s tokens of the puzzle, v vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from common import IGNORE_LABEL_ID
from models.act import ACTModel, Carry, Outputs
from models.loading import checked_options, load

Q_LOSS_WEIGHT = 0.5  # of the published code; the paper adds the losses unweighted


def log_stablemax(logits: mx.array) -> mx.array:
    """Compute log-probabilities log(s(x) / Σ s(x)) with s(x) = x + 1 for x ≥ 0 and 1 / (1 - x) for x < 0.

    Stablemax (paper, section 2). The PyTorch code computes it in float64, which GPUs under MLX lack. Here log s is
    ±log1p(|x|), accurate to float32 rounding, and Σ s is a sum of positive numbers, without cancellation.

    Args:
        logits: `[..., v]`, any float dtype.

    Returns:
        float32 `[..., v]`.
    """
    x = logits.astype(mx.float32)
    positive = x >= 0
    # Keeps the branch not taken, and its gradient, finite.
    above, below = mx.where(positive, x, 0), mx.where(positive, 0, x)
    s = mx.where(positive, 1 + above, 1 / (1 - below))
    log_s = mx.where(positive, mx.log1p(above), -mx.log1p(-below))
    return log_s - mx.log(mx.sum(s, axis=-1, keepdims=True))


def log_softmax(logits: mx.array) -> mx.array:
    """Compute log-probabilities under softmax, float32 `[..., v]`."""
    x = logits.astype(mx.float32)
    # Before the sum, so that no digits are lost to large logits.
    x = x - mx.stop_gradient(mx.max(x, axis=-1, keepdims=True))
    return x - mx.log(mx.sum(mx.exp(x), axis=-1, keepdims=True))


def negative_log_likelihood(log_probs: mx.array, labels: mx.array) -> mx.array:
    """Compute -log p of each label, 0 where the label is -100.

    Args:
        log_probs: float32 `[..., v]`.
        labels: int32 `[...]`.

    Returns:
        float32 `[...]`.
    """
    labelled = labels != IGNORE_LABEL_ID
    index = mx.where(labelled, labels, 0)
    picked = mx.take_along_axis(log_probs, index[..., None], axis=-1)[..., 0]
    return mx.where(labelled, -picked, 0.0)


def stablemax_cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Compute the cross entropy of each token under stablemax; 0 where the label is -100.

    Args:
        logits: `[..., v]`, any float dtype.
        labels: int32 `[...]`.

    Returns:
        float32 `[...]`.
    """
    return negative_log_likelihood(log_stablemax(logits), labels)


def softmax_cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Compute the cross entropy of each token under softmax; shapes as in `stablemax_cross_entropy`."""
    return negative_log_likelihood(log_softmax(logits), labels)


def is_loss(name: str) -> bool:
    """Return whether a metric is a loss by its name: a mean over the examples of a batch, not over halted rows."""
    return name.endswith("loss")


class ACTLossHead(nn.Module):
    """A model with its loss and metrics.

    `row_metrics` alone names the metrics: they are logged as `train/<name>` and `eval/<name>`, and `stop_when` takes
    them.

    Args:
        model: the model; its parameters have names below `model`.
        loss_type: the token loss, the name of a function in this file or `module@function` below `models`.
        options: keyword arguments of the token loss.

    Raises:
        UserError: if there is no such token loss, or it takes no such options.
    """

    def __init__(self, model: ACTModel, loss_type: str, **options: Any):
        super().__init__()
        self.model = model
        token_loss = load(loss_type, "arch.loss.loss_type", "softmax_cross_entropy", default_module="losses")
        self._token_loss = partial(token_loss, **checked_options(token_loss, options, "arch.loss", given=2))

    def __call__(
        self,
        carry: Carry,
        puzzle_rows: mx.array | None,
        *,
        training: bool,
        min_steps: mx.array | None = None,
    ) -> tuple[mx.array, Carry, dict[str, mx.array], Outputs]:
        """Take one outer step and compute its loss.

        Args:
            carry: what `model.begin_step` returned.
            puzzle_rows: float32 `[b, puzzle_emb_ndim]`, the puzzle embeddings of the carry's data, or None.
            training: let rows halt early, and compute the target of Q-continue.
            min_steps: int32 `[b]`, how many steps a row takes at least.

        Returns:
            The loss, summed over rows, a float32 scalar; the new carry; the metrics, sums of `counted_row_metrics`,
            float32 scalars, losses over all rows and the others over those that have halted; and the outputs of the
            model.
        """
        carry, outputs = self.model(carry, puzzle_rows, training=training, min_steps=min_steps)
        metrics = {
            name: (value if is_loss(name) else mx.where(carry["halted"], value, 0)).sum()
            for name, value in self.counted_row_metrics(carry, outputs).items()
        }
        return self.loss(metrics), carry, metrics, outputs

    def loss(self, metrics: dict[str, mx.array]) -> mx.array:
        """Combine the summed metrics into the loss; the caller divides it by global_batch_size."""
        q_loss = metrics["q_halt_loss"]
        if "q_continue_loss" in metrics:
            q_loss = q_loss + metrics["q_continue_loss"]
        return metrics["lm_loss"] + Q_LOSS_WEIGHT * q_loss

    def counted_row_metrics(self, carry: Carry, outputs: Outputs) -> dict[str, mx.array]:
        """Return `row_metrics` and `count`, 1 where a row has a label, float32 `[b]`.

        Rows without a label have 0 in all but the losses.
        """
        has_label = (carry["current_data"]["labels"] != IGNORE_LABEL_ID).any(axis=-1)
        rows = {
            name: (value if is_loss(name) else mx.where(has_label, value, 0)).astype(mx.float32)
            for name, value in self.row_metrics(carry, outputs).items()
        }
        return {"count": has_label.astype(mx.float32)} | rows

    def row_metrics(self, carry: Carry, outputs: Outputs) -> dict[str, mx.array]:
        """Compute what each row adds to the metrics.

        The best checkpoint is chosen by `exact_accuracy`, then `lm_loss`.

        Args:
            carry: the new carry.
            outputs: the outputs of the model.

        Returns:
            `[b]` by name. Those whose name ends in `loss` become means over the examples of a batch, all others means
            over the rows that have halted and have a label.
        """
        labels = carry["current_data"]["labels"]  # (b s)
        labelled = labels != IGNORE_LABEL_ID
        label_count = labelled.sum(axis=-1)  # (b)
        divisor = mx.maximum(label_count, 1)
        correct = labelled & (mx.argmax(outputs["logits"], axis=-1) == labels)  # (b s)
        correct_count = correct.sum(axis=-1)
        row_correct = correct_count == label_count
        q_halt = outputs["q_halt_logits"]

        rows = {
            "accuracy": correct_count / divisor,
            "exact_accuracy": row_correct,
            "q_halt_accuracy": (q_halt >= 0) == row_correct,
            "steps": carry["steps"],
            "lm_loss": self._token_loss(outputs["logits"], labels).sum(axis=-1) / divisor,
            "q_halt_loss": _binary_cross_entropy(q_halt, row_correct),
        }
        if "target_q_continue" in outputs:
            target = outputs["target_q_continue"]
            rows["q_continue_loss"] = _binary_cross_entropy(outputs["q_continue_logits"], target)
        return rows


def _binary_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    return nn.losses.binary_cross_entropy(logits, targets.astype(logits.dtype), reduction="none")
