"""Evaluation: every example once, in order, through all outer steps or until the model halts.

Metrics are summed, predictions are written batch by batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from utils.evaluation.predictions import PredictionWriter, to_numpy
from utils.evaluation.q_halting import finished_batches
from utils.evaluation.validity import answer_checks
from utils.ranks.ranks import Ranks
from utils.train.state import Metrics, to_device

NOT_REPORTED = ("count", "loss")  # the divisor of the others; the sum that is differentiated in training


def make_eval_step(
    head: ACTLossHead, halt: Literal["max", "q"] = "max"
) -> Callable[..., tuple[Carry, Metrics, Outputs]]:
    """Make the function that takes one outer step of an evaluation, to be compiled with the state of `head`.

    Args:
        head: the model with its loss.
        halt: `max` or `q`, as in `Evaluator`.

    Returns:
        A function of carry and batch. It returns the new carry; the metrics, with `max` sums over the rows that have
        halted, all of them at the last step, with `q` those of each row, `[b]`; and the outputs, with `preds`, the
        argmax of the logits, uint32 `[b, s]`.
    """

    def step(carry: Carry, batch: dict[str, mx.array]) -> tuple[Carry, Metrics, Outputs]:
        carry = head.model.begin_step(carry, batch)
        puzzle_rows = head.model.puzzle_rows(carry)
        if halt == "q":
            carry, outputs = head.model(carry, puzzle_rows, training=False, halt_by_q=True)
            metrics = head.counted_row_metrics(carry, outputs)
        else:
            loss, carry, metrics, outputs = head(carry, puzzle_rows, training=False)
            metrics = metrics | {"loss": loss}
        return carry, metrics, outputs | {"preds": mx.argmax(outputs["logits"], axis=-1)}

    return step


class Evaluator:
    """The compiled evaluation step of a model, and its outer loop. Each call uses the present weights of `head`.

    Args:
        head: the model with its loss.
        halt: `max`, every example takes halt_max_steps outer steps; `q`, it stops where the model's own rule halts.
    """

    def __init__(self, head: ACTLossHead, halt: Literal["max", "q"] = "max"):
        self.head = head
        self.halt = halt
        self.step = mx.compile(make_eval_step(head, halt), inputs=head.state)

    def outer_steps(self, batch: dict[str, mx.array]) -> Iterator[tuple[Carry, Metrics, Outputs]]:
        """Take all outer steps on a batch, with `halt` = max.

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
            writer: gets the outputs of every outer step, with `halt` = max.
            after_step: called after each outer step.

        Yields:
            Each batch, its metric sums, and its outputs, with `preds`.
        """
        if self.halt == "q":
            wanted = {"preds", *(writer.keys if writer is not None else ())}
            yield from finished_batches(self.step, self.head.model.initial_carry, batches, wanted, after_step)
            return
        for batch in batches:
            for *_, metrics, outputs in self.outer_steps(to_device(batch)):  # noqa: B007 - the last step's count
                if writer is not None:
                    untrained = () if self.head.model.trains_q_continue else ("q_continue_logits",)
                    writer.write_step({name: array for name, array in outputs.items() if name not in untrained})
                after_step()
            yield batch, metrics, outputs


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        metrics: `eval/<name>`, or `eval/<set>/<name>` where the data set has several sets, means over the examples.
        samples: the first examples, each with `inputs`, `labels` and `preds` `[s]`.
        num_examples: how many were evaluated.
        seconds: wall time.
    """

    metrics: dict[str, float]
    samples: list[dict[str, np.ndarray]]
    num_examples: int
    seconds: float


@dataclass
class _Share:
    """The results of one rank, in JSON's types: sums by set and name, samples with their place in the split."""

    totals: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: list[tuple[tuple[int, int, int], dict[str, list[int]]]] = field(default_factory=list)
    num_examples: int = 0


def prefix(dataset: PuzzleDataset, set_name: str) -> str:
    """Return the prefix of the metrics of one set: `eval/`, or `eval/<set>/` where there are several."""
    return "eval/" if len(dataset.metadata.sets) == 1 else f"eval/{set_name}/"


def evaluate(
    evaluator: Evaluator,
    dataset: PuzzleDataset,
    *,
    max_examples: int | None = None,
    writer: PredictionWriter | None = None,
    num_samples: int = 0,
    after_step: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Evaluate a test split. Sudoku and maze answers are also checked against the rules, without the label.

    Args:
        evaluator: the model.
        dataset: the test split, opened with this rank and number of ranks; its batches have the size given there.
        max_examples: only the first so many examples; None means all.
        writer: of the predictions of this rank's examples, if they are saved.
        num_samples: how many examples to return as samples.
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
    _evaluate_share(share, evaluator, dataset, max_examples, writer, num_samples, after_step, ranks)
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
    samples = sorted((sample for part in shares for sample in part.samples), key=lambda placed: placed[0])
    arrays = [{key: np.array(row) for key, row in sample.items()} for _, sample in samples[:num_samples]]
    return Evaluation(means, arrays, sum(part.num_examples for part in shares), time.monotonic() - started)


def _evaluate_share(
    share: _Share,
    evaluator: Evaluator,
    dataset: PuzzleDataset,
    max_examples: int | None,
    writer: PredictionWriter | None,
    num_samples: int,
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
        if any(numbers := ranks.gather(number)):
            raise Interrupted(max(numbers))
        ranks.moved()

    checks = answer_checks(dataset.metadata)
    to_evaluate = dataset.num_examples if max_examples is None else min(max_examples, dataset.num_examples)
    with (
        prefetch(dataset.eval_batches(max_examples=max_examples)) as batches,
        progress_bar(total=to_evaluate, disable=not ranks.first, desc="evaluate", unit="ex", leave=False) as bar,
    ):
        for number, (batch, metrics, outputs) in enumerate(evaluator.results(batches, writer, stepped)):
            if writer is not None:
                writer.write(batch, outputs)
            for row in range(min(num_samples - len(share.samples), batch.num_examples)):
                shown = (batch.inputs[row], batch.labels[row], to_numpy(outputs["preds"][row]))
                sample = {
                    name: array.tolist() for name, array in zip(("inputs", "labels", "preds"), shown, strict=True)
                }
                share.samples.append(((number, ranks.rank, row), sample))

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
