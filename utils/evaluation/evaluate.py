"""Evaluation: every example once, in order, through all outer steps or until the model halts. Metrics are summed,
predictions streamed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from common.errors import Interrupted
from dataset.prefetch import prefetch
from dataset.puzzle_dataset import Batch, PuzzleDataset
from models.act import Carry, Outputs
from models.losses import ACTLossHead
from utils.evaluation.predictions import PredictionWriter, to_numpy
from utils.evaluation.q_halting import finished_batches
from utils.evaluation.validity import answer_checks
from utils.ranks.ranks import Ranks
from utils.train.state import Metrics, to_device

NOT_REPORTED = ("count", "loss")  # what the others are divided by; what is differentiated in training


def make_eval_step(
    head: ACTLossHead, halt: Literal["max", "q"] = "max"
) -> Callable[..., tuple[Carry, Metrics, Outputs]]:
    """Make the function that takes one outer step of an evaluation, to be compiled with the state of `head`.

    It maps a carry and a batch to the new carry, metrics and outputs, `preds` among them: uint32 `[b, s]`, the argmax
    of the logits. With `max` the metrics are sums over the rows that have halted, all of them at the last step; with
    `q` they are those of each row, `[b]`.
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
    """The compiled evaluation step of a model, and its outer loop. Reads the weights that `head` has at each call.

    Args:
        head: the model.
        halt: `max`, every example takes all halt_max_steps outer steps; `q`, it stops where the model halts.
    """

    def __init__(self, head: ACTLossHead, halt: Literal["max", "q"] = "max"):
        self.head = head
        self.halt = halt
        self.step = mx.compile(make_eval_step(head, halt), inputs=head.state)

    def outer_steps(self, batch: dict[str, mx.array]) -> Iterator[tuple[Carry, Metrics, Outputs]]:
        """Think about a batch, with `halt` = max; yields what the step returns after each of the outer steps.

        The metrics count halted rows, and in evaluation a row halts after the last step, so those yielded last are the
        evaluation's.
        """
        carry = self.head.model.initial_carry(batch)
        for _ in range(self.head.model.config.halt_max_steps):
            earlier = carry
            carry, metrics, outputs = self.step(carry, batch)
            mx.async_eval(carry)  # the metrics and outputs of all but the last step are seldom asked for
            mx.eval(earlier)  # one step ahead of the device is enough, and the caller may want to end here
            yield carry, metrics, outputs

    def results(
        self, batches: Iterator[Batch], writer: PredictionWriter | None, after_step: Callable[[], None]
    ) -> Iterator[tuple[Batch, dict[str, Any], dict[str, Any]]]:
        """Think about all examples; yields each batch with its metric sums and outputs, `preds` among them.

        `writer` is told of every outer step where all examples take the same ones; `after_step` is called after each.
        """
        if self.halt == "q":
            wanted = {"preds", *(writer.keys if writer is not None else ())}
            yield from finished_batches(self.step, self.head.model.initial_carry, batches, wanted, after_step)
            return
        for batch in batches:
            for *_, metrics, outputs in self.outer_steps(to_device(batch)):  # noqa: B007 - the last step's count
                if writer is not None:
                    writer.write_step(outputs)
                after_step()
            yield batch, metrics, outputs


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

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
    """What one rank finds, in JSON's types: sums by set and name, samples with their place in the split."""

    totals: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: list[tuple[tuple[int, int, int], dict[str, list[int]]]] = field(default_factory=list)
    num_examples: int = 0


def prefix(dataset: PuzzleDataset, set_name: str) -> str:
    """Return what stands before the name of a metric of one set: `eval/`, or `eval/<set>/` where there are several."""
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
    """Evaluate a test split. Sudoku and maze answers are also checked for what they are worth without the label.

    Args:
        evaluator: the model.
        dataset: the test split; its batches have the size given there, the last one padded.
        max_examples: only the first so many examples; None means all.
        writer: where predictions go, if anywhere.
        num_samples: how many examples to return as samples.
        after_step: called after each outer step, with several ranks after each batch. What it raises on one of them
            ends the evaluation on all.
        ranks: the processes that share the test split, as `dataset` was told. What is returned is the same on all of
            them; `writer` gets the examples of its own rank.

    Raises:
        Interrupted: if `after_step` does so on any rank.
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
    """Evaluate this rank's examples, and add what is found to `share`."""

    def stepped() -> None:
        ranks.moved()
        if ranks.size == 1:
            after_step()

    def heed_signals() -> None:
        """Raise Interrupted on all ranks, which have equally many batches, if one of them has got a signal."""
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
        tqdm(
            total=to_evaluate, disable=not ranks.first, desc="evaluate", unit="ex", dynamic_ncols=True, leave=False
        ) as bar,
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
            if ranks.size > 1:  # so that none gets far ahead, where waiting would be taken for a hang
                heed_signals()
