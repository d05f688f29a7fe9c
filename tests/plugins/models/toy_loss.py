"""A toy loss head with a parameter and a metric of its own, and a toy token loss with an option."""

from __future__ import annotations

from typing import Annotated, Any

import mlx.core as mx
from pydantic import Field

from common import IGNORE_LABEL_ID
from models.act import ACTModel, Carry, Outputs
from models.losses import ACTLossHead, log_softmax, softmax_cross_entropy


class SmoothedLossHead(ACTLossHead):
    """Smooths the labels: a share `smoothing` of each is spread over the vocabulary. Metric: `confidence`."""

    def __init__(
        self, model: ACTModel, loss_type: str, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0, **options: Any
    ):
        super().__init__(model, loss_type, **options)
        self._smoothing = smoothing

    def row_metrics(self, carry: Carry, outputs: Outputs) -> dict[str, mx.array]:
        """Add the mean probability of the predicted tokens, and smooth `lm_loss`. Each float32 `[b]`."""
        rows = super().row_metrics(carry, outputs)
        labelled = carry["current_data"]["labels"] != IGNORE_LABEL_ID  # (b s)
        divisor = mx.maximum(labelled.sum(axis=-1), 1)
        log_p = log_softmax(outputs["logits"])  # (b s v)
        rows["confidence"] = (labelled * mx.exp(log_p.max(axis=-1))).sum(axis=-1) / divisor
        spread = -(labelled * log_p.mean(axis=-1)).sum(axis=-1) / divisor
        rows["lm_loss"] = (1 - self._smoothing) * rows["lm_loss"] + self._smoothing * spread
        return rows


def focal_cross_entropy(logits: mx.array, labels: mx.array, gamma: float = 2.0) -> mx.array:
    """Weigh the cross entropy of each token by (1 - p)^gamma: `[b, s, v]` and `[b, s]` to float32 `[b, s]`."""
    loss = softmax_cross_entropy(logits, labels)
    return (1 - mx.exp(-loss)) ** gamma * loss
