"""The losses of HRM: stablemax or softmax cross entropy on the tokens, binary cross entropy on the two Q values, and
the metrics that go with them. Shapes in comments: b batch, s tokens of the puzzle, v vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from common import IGNORE_LABEL_ID
from models.hrm.hrm_act_v1 import Carry, HierarchicalReasoningModel_ACTV1

Q_LOSS_WEIGHT = 0.5


def log_stablemax(logits: mx.array) -> mx.array:
    """Log-probabilities log(s(x) / Σ s(x)) with s(x) = x + 1 for x ≥ 0 and 1 / (1 - x) for x < 0.

    The published code computes this in float64, which GPUs under MLX lack. Here log s is ±log1p(|x|), accurate
    to float32 rounding, and Σ s is a sum of positive numbers, which loses nothing to cancellation.

    Args:
        logits: `[..., v]`, any float dtype.

    Returns:
        float32 `[..., v]`.
    """
    x = logits.astype(mx.float32)
    positive = x >= 0
    above, below = (
        mx.where(positive, x, 0),
        mx.where(positive, 0, x),
    )  # keeps the branch not taken, and its gradient, finite
    s = mx.where(positive, 1 + above, 1 / (1 - below))
    log_s = mx.where(positive, mx.log1p(above), -mx.log1p(-below))
    return log_s - mx.log(mx.sum(s, axis=-1, keepdims=True))


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities under softmax, float32 `[..., v]`."""
    x = logits.astype(mx.float32)
    x = x - mx.stop_gradient(
        mx.max(x, axis=-1, keepdims=True)
    )  # before the sum, so that no digits are lost to large logits
    return x - mx.log(mx.sum(mx.exp(x), axis=-1, keepdims=True))


def _cross_entropy(log_probs: mx.array, labels: mx.array) -> mx.array:
    labelled = labels != IGNORE_LABEL_ID
    index = mx.where(labelled, labels, 0)
    picked = mx.take_along_axis(log_probs, index[..., None], axis=-1)[..., 0]
    return mx.where(labelled, -picked, 0.0)


def stablemax_cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Cross entropy of each token under stablemax; 0 where the label is -100.

    Args:
        logits: `[..., v]`, any float dtype.
        labels: int32 `[...]`.

    Returns:
        float32 `[...]`.
    """
    return _cross_entropy(log_stablemax(logits), labels)


def softmax_cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """Cross entropy of each token under softmax; 0 where the label is -100. Shapes as `stablemax_cross_entropy`."""
    return _cross_entropy(log_softmax(logits), labels)


TOKEN_LOSSES: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "stablemax_cross_entropy": stablemax_cross_entropy,
    "softmax_cross_entropy": softmax_cross_entropy,
}


class ACTLossHead(nn.Module):
    """The model together with its loss and metrics.

    Args:
        model: the ACT model; its parameters appear below the name `model`.
        loss_type: `stablemax_cross_entropy` or `softmax_cross_entropy`.

    Raises:
        ValueError: if `loss_type` is neither.
    """

    def __init__(self, model: HierarchicalReasoningModel_ACTV1, loss_type: str):
        super().__init__()
        if loss_type not in TOKEN_LOSSES:
            raise ValueError(f"arch.loss.loss_type is {loss_type!r}; it must be one of {', '.join(TOKEN_LOSSES)}")
        self.model = model
        self._token_loss = TOKEN_LOSSES[loss_type]

    def __call__(
        self,
        carry: Carry,
        puzzle_rows: mx.array | None,
        *,
        training: bool,
        key: mx.array | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> tuple[mx.array, Carry, dict[str, mx.array], dict[str, mx.array]]:
        """One outer step and its loss.

        Args:
            carry: what `model.begin_step` returned.
            puzzle_rows: float32 `[b, puzzle_emb_ndim]`, the puzzle embeddings of the carry's data, or None.
            training: whether rows may halt early and the Q-continue target is computed.
            key: random key of the exploration; needed when training.
            rank, num_ranks: which slice of a global batch the rows are.

        Returns:
            `(loss, carry, metrics, outputs)`: the loss summed over rows, float32 scalar; the new carry; metric sums
            over halted rows with at least one label (float32 scalars); the outputs of the model.
        """
        carry, outputs = self.model(carry, puzzle_rows, training=training, key=key, rank=rank, num_ranks=num_ranks)
        loss, metrics = self.loss(carry, outputs)
        return loss, carry, metrics, outputs

    def loss(self, carry: Carry, outputs: dict[str, mx.array]) -> tuple[mx.array, dict[str, mx.array]]:
        """Loss and metrics of what the model made of a carry; shapes as `__call__`."""
        rows = self.row_metrics(carry, outputs)
        metrics = {
            name: (value if name.endswith("loss") else mx.where(carry["halted"], value, 0)).sum()
            for name, value in rows.items()
        }
        q_loss = metrics["q_halt_loss"]
        if "target_q_continue" in outputs:
            q_continue, target = outputs["q_continue_logits"], outputs["target_q_continue"]
            metrics["q_continue_loss"] = nn.losses.binary_cross_entropy(q_continue, target, reduction="sum")
            q_loss = q_loss + metrics["q_continue_loss"]
        return metrics["lm_loss"] + Q_LOSS_WEIGHT * q_loss, metrics

    def row_metrics(self, carry: Carry, outputs: dict[str, mx.array]) -> dict[str, mx.array]:
        """What each row adds to the metrics, float32 `[b]`; nothing but the losses where a row has no label."""
        labels = carry["current_data"]["labels"]  # (b s)
        labelled = labels != IGNORE_LABEL_ID
        label_count = labelled.sum(axis=-1)  # (b)
        divisor = mx.maximum(label_count, 1)
        correct = labelled & (mx.argmax(outputs["logits"], axis=-1) == labels)  # (b s)
        correct_count = correct.sum(axis=-1)
        row_correct = correct_count == label_count
        q_halt = outputs["q_halt_logits"]

        counted = {
            "count": mx.ones_like(label_count),
            "accuracy": correct_count / divisor,
            "exact_accuracy": row_correct,
            "q_halt_accuracy": (q_halt >= 0) == row_correct,
            "steps": carry["steps"],
        }
        return {name: mx.where(label_count > 0, value, 0).astype(mx.float32) for name, value in counted.items()} | {
            "lm_loss": self._token_loss(outputs["logits"], labels).sum(axis=-1) / divisor,
            "q_halt_loss": nn.losses.binary_cross_entropy(q_halt, row_correct.astype(q_halt.dtype), reduction="none"),
        }
