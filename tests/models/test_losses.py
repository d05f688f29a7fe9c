"""Losses and metrics against plain numpy in float64; a wrong one would train towards, or report, something else."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from common.errors import UserError
from models.losses import ACTLossHead, log_softmax, log_stablemax, softmax_cross_entropy, stablemax_cross_entropy
from tests.helpers.configs import pretrain_config, random_batch, sizes
from utils.model import build_model


def log_stablemax_float64(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    s = np.where(x >= 0, x + 1, 1 / (1 - np.minimum(x, 0) + 1e-30))
    return np.log(s / s.sum(-1, keepdims=True))


def log_softmax_float64(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    ("ours", "reference"), [(log_stablemax, log_stablemax_float64), (log_softmax, log_softmax_float64)]
)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0, 1e4])
def test_log_probabilities_keep_float32_accuracy(ours: Any, reference: Any, scale: float) -> None:
    logits = (np.random.default_rng(0).normal(size=(500, 11)) * scale).astype(np.float32)
    expected = reference(logits)
    np.testing.assert_allclose(np.array(ours(mx.array(logits))), expected, rtol=5e-7, atol=1e-6 * max(1, scale))


def test_stablemax_gradient_is_finite_and_right_everywhere() -> None:
    # 0 is the seam of the two branches and 1 the pole of the branch not taken there.
    logits = np.array([[0.0, 1.0, -1.0, 5.0], [1e20, -1e20, 0.0, -0.0]], np.float32)
    gradient = np.array(mx.grad(lambda x: log_stablemax(x)[:, 0].sum())(mx.array(logits)))

    x = logits.astype(np.float64)
    s = np.where(x >= 0, x + 1, 1 / (1 - np.minimum(x, 0)))
    ds = np.where(x >= 0, 1, 1 / (1 - np.minimum(x, 0)) ** 2)
    expected = -ds / s.sum(-1, keepdims=True)
    expected[:, 0] += ds[:, 0] / s[:, 0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("loss", [stablemax_cross_entropy, softmax_cross_entropy])
def test_ignored_labels_cost_nothing_and_teach_nothing(loss: Any) -> None:
    logits = mx.random.normal((3, 4, 6), key=mx.random.key(0))
    labels = mx.array([[1, -100, 2, -100], [-100] * 4, [0, 5, 3, 1]])
    value, gradient = mx.value_and_grad(lambda x: loss(x, labels).sum())(logits)
    ignored = np.array(labels) == -100
    assert (np.array(loss(logits, labels))[ignored] == 0).all()
    assert (np.array(gradient)[ignored] == 0).all()
    assert (np.array(gradient)[~ignored] != 0).any(axis=-1).all()
    assert np.isfinite(value.item())


class _Fixed(ACTLossHead):
    """The loss head on a model whose outputs are given."""

    def __init__(self, carry: Any, outputs: Any, loss_type: str):
        super().__init__(lambda *_, **__: (carry, dict(outputs)), loss_type)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss_type", ["stablemax_cross_entropy", "softmax_cross_entropy"])
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_metrics_follow_their_definition(loss_type: str, training: bool) -> None:
    rng = np.random.default_rng(5)
    b, s, v = 12, 5, 4
    logits = rng.normal(size=(b, s, v)).astype(np.float32)
    labels = rng.integers(0, v, (b, s))
    labels[rng.random((b, s)) < 0.3] = -100
    labels[2] = -100  # a padding row, which halts as well and is in no metric but the losses
    labels[4:8] = np.where(labels[4:8] == -100, -100, logits[4:8].argmax(-1))  # some rows are right
    q_halt, q_continue = rng.normal(size=(2, b)).astype(np.float32)
    target = rng.random(b).astype(np.float32)
    halted, steps = rng.random(b) < 0.6, rng.integers(1, 9, b)
    halted[[2, 4, 5]] = True

    carry = {
        "halted": mx.array(halted),
        "steps": mx.array(steps, mx.int32),
        "current_data": {"labels": mx.array(labels, mx.int32)},
    }
    outputs = {"logits": mx.array(logits), "q_halt_logits": mx.array(q_halt), "q_continue_logits": mx.array(q_continue)}
    if training:
        outputs["target_q_continue"] = mx.array(target)
    loss, _, metrics, _ = _Fixed(carry, outputs, loss_type)(carry, None, training=training)

    def bce(logit: np.ndarray, wanted: np.ndarray) -> float:
        logit = logit.astype(np.float64)
        return float((np.maximum(logit, 0) - logit * wanted + np.log1p(np.exp(-np.abs(logit)))).sum())

    log_probs = (log_stablemax_float64 if "stablemax" in loss_type else log_softmax_float64)(logits)
    expected = dict.fromkeys(("count", "accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss"), 0.0)
    row_correct = np.zeros(b)
    for row in range(b):
        labelled = [i for i in range(s) if labels[row, i] != -100]
        right = [i for i in labelled if logits[row, i].argmax() == labels[row, i]]
        row_correct[row] = len(right) == len(labelled)
        expected["lm_loss"] -= sum(log_probs[row, i, labels[row, i]] for i in labelled) / max(len(labelled), 1)
        if halted[row] and labelled:
            expected["count"] += 1
            expected["accuracy"] += len(right) / len(labelled)
            expected["exact_accuracy"] += row_correct[row]
            expected["q_halt_accuracy"] += (q_halt[row] >= 0) == row_correct[row]
            expected["steps"] += steps[row]
    expected["q_halt_loss"] = bce(q_halt, row_correct)
    total = expected["lm_loss"] + 0.5 * expected["q_halt_loss"]
    if training:
        expected["q_continue_loss"] = bce(q_continue, target)
        total += 0.5 * expected["q_continue_loss"]

    assert expected["exact_accuracy"] >= 2
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-6)
    assert loss.item() == pytest.approx(total, rel=1e-6)


def test_the_target_of_q_continue_is_not_differentiated() -> None:
    head = build_model(pretrain_config({"halt_exploration_prob": 0.0}).arch, sizes(), mx.random.key(0))
    batch = random_batch(0)
    carry = head.model.begin_step(head.model.initial_carry(batch), batch)

    rows = head.model.puzzle_rows(carry)
    value, gradient = mx.value_and_grad(lambda r: head.model(carry, r, training=True)[1]["target_q_continue"].sum())(
        rows
    )
    assert value.item() > 0
    assert not gradient.any()


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(UserError, match=r"arch.loss.loss_type = 'hinge': models.losses defines no hinge"):
        ACTLossHead(None, "hinge")  # type: ignore[arg-type]
