"""Evaluation: every example, in order, through all outer steps or until the model halts, or thought about longer.

Metrics are summed, predictions are written batch by batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from common.errors import Interrupted
from common.progress import progress_bar
from dataset.prefetch import prefetch
from dataset.puzzle_dataset import Batch, PuzzleDataset
from models.act import Carry, Outputs
from models.losses import ACTLossHead
from utils.evaluation.curve import Curve
from utils.evaluation.predictions import PredictionWriter, to_numpy
from utils.evaluation.search import Search
from utils.evaluation.slot_step import Slots, initial_slots, make_slot_step
from utils.evaluation.slots import SlotBatch, finished_batches
from utils.evaluation.thinking import Thinking
from utils.evaluation.validity import answer_checks
from utils.ranks.ranks import Ranks
from utils.train.state import to_device
from utils.train.step import Metrics

NOT_REPORTED = ("count", "loss")  # the divisor of the others; the sum that is differentiated in training


def make_eval_step(head: ACTLossHead) -> Callable[..., tuple[Carry, Metrics, Outputs]]:
    """Make the function that takes one outer step of an evaluation, to be compiled with the state of `head`.

    Args:
        head: the model with its loss.

    Returns:
        A function of carry and batch. It returns the new carry; the metrics, sums over the rows that have halted, all
        of them at the last step; and the outputs, with `preds`, the argmax of the logits, uint32 `[b, s]`.
    """

    def step(carry: Carry, batch: dict[str, mx.array]) -> tuple[Carry, Metrics, Outputs]:
        carry = head.model.begin_step(carry, batch)
        loss, carry, metrics, outputs = head(carry, head.model.puzzle_rows(carry), training=False)
        return carry, metrics | {"loss": loss}, outputs | {"preds": mx.argmax(outputs["logits"], axis=-1)}

    return step


class Evaluator:
    """The compiled evaluation step of a model, and its outer loop. Each call uses the present weights of `head`.

    Args:
        head: the model with its loss.
        halt: `max`, every example takes all outer steps; `q`, it stops where the model's own rule halts.
        search: how far to think about each puzzle; None: no further than the model was trained to.
    """

    def __init__(self, head: ACTLossHead, halt: Literal["max", "q"] = "max", search: Search | None = None):
        self.head = head
        self.search = search or Search(Thinking(), None)
        self.in_slots = halt == "q" or not self.search.is_plain
        step = make_slot_step(head, halt, self.search) if self.in_slots else make_eval_step(head)
        self.step = mx.compile(step, inputs=head.state)

    def outer_steps(self, batch: dict[str, mx.array]) -> Iterator[tuple[Carry, Metrics, Outputs]]:
        """Take all outer steps on a batch, where they are not taken in slots.

        Args:
            batch: int32 arrays `inputs` `[b, s]`, `labels` `[b, s]`, `puzzle_identifiers` `[b]`, ….

        Yields:
            What the step returns, after each outer step. The metrics count halted rows, and in evaluation all rows halt
            after the last step: the metrics yielded last are the evaluation's.
        """
        carry = self.head.model.initial_carry(batch)
        for _ in range(self.head.model.config.halt_max_steps):
            earlier = carry
            carry, metrics, outputs = self.step(carry, batch)
            mx.async_eval(carry)  # the metrics and outputs of all but the last step are rarely used
            mx.eval(earlier)  # one step ahead of the device is enough, and the caller may end here
            yield carry, metrics, outputs

    def results(
        self, batches: Iterator[Batch], writer: PredictionWriter | None, after_step: Callable[[], None]
    ) -> Iterator[tuple[Batch, dict[str, Any], dict[str, Any]]]:
        """Take the outer steps of all examples.

        Args:
            batches: of the test split.
            writer: gets the outputs of every outer step, where they are not taken in slots.
            after_step: called after each outer step.

        Yields:
            Each batch, its metric sums, and its outputs, with `preds`.
        """
        if self.in_slots:
            wanted = writer.keys if writer is not None else ()
            for done in self.batches_in_slots(batches, wanted, after_step):
                yield done.batch, done.metrics, done.outputs
            return
        for batch in batches:
            for *_, metrics, outputs in self.outer_steps(to_device(batch)):  # noqa: B007 - the last step's count
                if writer is not None:
                    untrained = () if self.head.model.trains_q_continue else ("q_continue_logits",)
                    writer.write_step({name: array for name, array in outputs.items() if name not in untrained})
                after_step()
            yield batch, metrics, outputs

    def batches_in_slots(
        self, batches: Iterator[Batch], wanted: Collection[str] = (), after_step: Callable[[], None] = lambda: None
    ) -> Iterator[SlotBatch]:
        """Take the outer steps of all examples in slots: see `slots.finished_batches`."""
        self.search.forget()

        def empty_slots(rows: dict[str, mx.array]) -> Slots:
            return initial_slots(self.head, rows, self.search)

        return finished_batches(self.step, empty_slots, batches, wanted, after_step, self.search)


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        metrics: `eval/<name>`, or `eval/<set>/<name>` where the data set has several sets, means over the examples.
        shown: the first examples, each with `inputs`, `labels` and `preds` `[s]`.
        num_examples: how many were evaluated.
        seconds: wall time.
        curve: what fewer samples would have found; None for an evaluation that is not in slots.
    """

    metrics: dict[str, float]
    shown: list[dict[str, np.ndarray]]
    num_examples: int
    seconds: float
    curve: Curve | None = None


@dataclass
class _Share:
    """The results of one rank, in JSON's types: sums by set and name, shown examples with their place in the split."""

    totals: dict[str, dict[str, float]] = field(default_factory=dict)
    shown: list[tuple[tuple[int, int, int], dict[str, list[int]]]] = field(default_factory=list)
    num_examples: int = 0
    curve: list[list[float]] = field(default_factory=list)
    curve_puzzles: int = 0


def prefix(dataset: PuzzleDataset, set_name: str) -> str:
    """Return the prefix of the metrics of one set: `eval/`, or `eval/<set>/` where there are several."""
    return "eval/" if len(dataset.metadata.sets) == 1 else f"eval/{set_name}/"


def evaluate(
    evaluator: Evaluator,
    dataset: PuzzleDataset,
    *,
    max_examples: int | None = None,
    max_rows: int | None = None,
    writer: PredictionWriter | None = None,
    num_shown: int = 0,
    after_step: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate a test split. Sudoku and maze answers are also checked against the rules, without the label.

    Args:
        evaluator: the model.
        dataset: the test split, opened with this rank and number of ranks; its batches have the size given there.
        max_examples: only the first so many examples; None means all.
        max_rows: of a batch of this rank at most; None: as many as the data set's batches have. The results of an
            example don't depend on it.
        writer: of the predictions of this rank's examples, if they are saved.
        num_shown: how many examples to return to be shown.
        after_step: called after each outer step, with several ranks after each batch. An exception of it on one rank
            ends the evaluation on all.
        ranks: the processes that share the test split.

    Returns:
        The results, the same on all ranks.

    Raises:
        Interrupted: if `after_step` raises it on any rank.
    """
    ranks = ranks or Ranks()
    started = time.monotonic()
    share = _Share()
    _evaluate_share(share, evaluator, dataset, max_examples, max_rows, writer, num_shown, after_step, ranks)
    curve = evaluator.search.curve
    share.curve, share.curve_puzzles = curve.changes.tolist(), curve.puzzles
    if evaluator.search.thinking.samples > 1:
        ranks.rest()  # the hard puzzles may all be another's
    shares = [_Share(**values) for values in ranks.gather(vars(share))]

    checks = answer_checks(dataset.metadata)
    means: dict[str, float] = {}
    for set_name in share.totals:  # the same on all ranks, which have equally many batches
        total = {name: sum(part.totals[set_name][name] for part in shares) for name in share.totals[set_name]}
        examples = max(1.0, total.pop("examples"))
        count = max(1.0, total["count"])
        means |= {
            prefix(dataset, set_name) + name: value / (examples if name in checks else count)
            for name, value in total.items()
            if name not in NOT_REPORTED
        }
    placed = sorted((example for part in shares for example in part.shown), key=lambda placed: placed[0])
    shown = [{key: np.array(row) for key, row in example.items()} for _, example in placed[:num_shown]]
    num_examples = sum(part.num_examples for part in shares)
    changes = np.sum([part.curve for part in shares], axis=0)
    whole = Curve(curve.has_rules, changes, sum(part.curve_puzzles for part in shares))
    seconds = time.monotonic() - started
    return Evaluation(means, shown, num_examples, seconds, whole if evaluator.in_slots else None)


def _evaluate_share(
    share: _Share,
    evaluator: Evaluator,
    dataset: PuzzleDataset,
    max_examples: int | None,
    max_rows: int | None,
    writer: PredictionWriter | None,
    num_shown: int,
    after_step: Callable[[], None],
    ranks: Ranks,
) -> None:
    """Evaluate this rank's examples, and add the results to `share`."""

    def stepped() -> None:
        ranks.moved()
        if ranks.size == 1:
            after_step()

    def check_signals() -> None:
        """Raise Interrupted on all ranks, which have equally many batches, if a signal has come to one of them."""
        number = 0
        try:
            after_step()
        except Interrupted as interrupted:
            number = interrupted.signal_number
        if evaluator.search.thinking.samples > 1:  # the hard puzzles may all be another's
            ranks.rest()
        if any(numbers := ranks.gather(number)):
            raise Interrupted(max(numbers))
        ranks.moved()

    checks = answer_checks(dataset.metadata)
    to_evaluate = dataset.num_examples if max_examples is None else min(max_examples, dataset.num_examples)
    with (
        prefetch(dataset.eval_batches(max_examples=max_examples, max_rows=max_rows)) as batches,
        progress_bar(total=to_evaluate, disable=not ranks.first, desc="evaluate", unit="ex", leave=False) as bar,
    ):
        for number, (batch, metrics, outputs) in enumerate(evaluator.results(batches, writer, stepped)):
            if writer is not None:
                writer.write(batch, outputs)
            for row in range(min(num_shown - len(share.shown), batch.num_examples)):
                shown = (batch.inputs[row], batch.labels[row], to_numpy(outputs["preds"][row]))
                example = {
                    name: array.tolist() for name, array in zip(("inputs", "labels", "preds"), shown, strict=True)
                }
                share.shown.append(((number, ranks.rank, row), example))

            total = share.totals.setdefault(batch.set_name, dict.fromkeys([*metrics, *checks, "examples"], 0.0))
            for name, value in metrics.items():
                total[name] += float(value)
            for name, check in checks.items():
                real = slice(batch.num_examples)
                total[name] += float(check(batch.inputs[real], to_numpy(outputs["preds"][real])).sum())
            total["examples"] += batch.num_examples
            share.num_examples += batch.num_examples
            exact = total.get("exact_accuracy", 0.0) / max(1.0, total["count"])
            bar.set_postfix(exact=f"{exact:.3f}", refresh=False)
            bar.update(min(ranks.size * batch.num_examples, to_evaluate - bar.n))  # the others are about as far
            if ranks.size > 1:  # so that none gets far ahead, and its watchdog takes waiting for a hang
                check_signals()
