"""The outer step of an evaluation in slots, on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import mlx.core as mx

from models.act import Outputs
from models.losses import ACTLossHead
from models.variation import vary
from utils.evaluation.search import Search

_SETTLING = 3  # outer steps

Slots = dict[str, Any]  # the carry of the model, `act`, and what belongs to it, arrays `[b, …]`


def initial_slots(head: ACTLossHead, rows: dict[str, mx.array], search: Search) -> Slots:
    """Return the slots before the first step: all empty, so that each takes its row."""
    slots: Slots = {"act": head.model.initial_carry(rows)}
    if search.needs_movement:
        shape = (*rows["inputs"].shape, head.model.config.vocab_size)
        slots |= {"logits": mx.zeros(shape), "moves": mx.zeros((shape[0], _SETTLING))}
    return slots


def make_slot_step(head: ACTLossHead, halt: Literal["max", "q"], search: Search) -> Callable[..., tuple]:
    """Make the function that takes one outer step in all slots, to be compiled with the state of `head`.

    Args:
        head: the model with its loss.
        halt: `max` or `q`, as in `Evaluator`.
        search: how far to think.

    Returns:
        A function of the slots; the rows that wait beside them; and `leave`, bool `[b]`, the slots that take their row
        though the model has not halted there. It returns the new slots; `halted`, bool `[b]`; what each row adds to the
        metrics; and the outputs with `preds`, the argmax of the logits, uint32 `[b, s]`, and where it is needed
        `movement`, float32 `[b]`: the root mean square by which a logit has moved from one step to the next, averaged
        over the last 3 steps; infinite after the first step.
    """
    thinking = search.thinking

    def step(slots: Slots, rows: dict[str, mx.array], leave: mx.array) -> tuple[Slots, mx.array, Outputs, Outputs]:
        act = slots["act"]
        begun = head.model.begin_step(act | {"halted": act["halted"] | leave}, rows)
        begun = vary(begun, thinking.noise, thinking.random_init)
        puzzle_rows = head.model.puzzle_rows(begun)
        act, outputs = head.model(
            begun, puzzle_rows, training=False, halt_by_q=halt == "q", max_steps=thinking.max_steps
        )
        new: Slots = {"act": act}
        outputs = outputs | {"preds": mx.argmax(outputs["logits"], axis=-1), "steps": act["steps"]}
        if search.needs_movement:
            logits, earlier = outputs["logits"].astype(mx.float32), act["steps"] - 1
            move = mx.sqrt(mx.square(logits - slots["logits"]).mean(axis=(1, 2)))
            moves = mx.where((earlier == 0)[:, None], 0.0, slots["moves"])
            moves = mx.concatenate([moves[:, 1:], mx.where(earlier == 0, 0.0, move)[:, None]], axis=1)
            new |= {"logits": logits, "moves": moves}
            outputs["movement"] = moves.sum(axis=1) / mx.minimum(earlier, _SETTLING)  # 0 / 0 after the first step
            outputs["movement"] = mx.where(earlier == 0, mx.inf, outputs["movement"])
        return new, act["halted"], head.counted_row_metrics(act, outputs), outputs

    return step
