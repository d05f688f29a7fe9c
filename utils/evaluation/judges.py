"""Samples of a puzzle, and the choice among their answers. No judge sees the label."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from utils.evaluation.thinking import Choose


@dataclass(frozen=True)
class Verdict:
    """What the rules say of an answer; by default, that there are no rules.

    Attributes:
        holds: whether it keeps to them.
        is_best: whether it does, and no answer can be better.
        cost: of an answer that holds, lower is better.
    """

    holds: bool = False
    is_best: bool = False
    cost: int = 0


@dataclass(frozen=True)
class Sample:
    """A try at a puzzle that has ended.

    Attributes:
        number: from 0, the plain one.
        outputs: of the model after its last step, arrays `[…]` by name; `preds`, its answer on the puzzle's own board,
            int32 `[s]`; `steps`, that it took; where a judge needs it `movement`, of its logits in the last 3 steps.
        scored: the answer without what no label ever scores; `preds` where nothing is left out.
        verdict: of the rules on its answer.
        metrics: what it adds to the metrics. Computed from the label, so not for judges.
        film: with `Search.film` the predictions `[s]`, Q-halt and whether the model would halt, after each step.
    """

    number: int
    outputs: dict[str, np.ndarray]
    scored: np.ndarray
    verdict: Verdict = Verdict()
    metrics: dict[str, float] = field(default_factory=dict)
    film: list[tuple[np.ndarray, float, bool]] = field(default_factory=list)

    @property
    def preds(self) -> np.ndarray:
        """The answer, int32 `[s]`."""
        return self.outputs["preds"]

    @property
    def steps(self) -> int:
        """The outer steps that it took."""
        return int(self.outputs["steps"])

    @property
    def exact(self) -> float:
        """1 if the answer equals the label. Not for judges. 0 where the loss head has no such metric."""
        return self.metrics.get("exact_accuracy", 0.0)

    @property
    def q_halt(self) -> float:
        """The logit of Q-halt; below all others where the model has diverged."""
        q = float(self.outputs["q_halt_logits"])
        return -math.inf if math.isnan(q) else q


@dataclass
class _Answer:
    """An answer that samples have in common, the first of them, their number and their halting probabilities' sum."""

    first: Sample
    votes: int = 0
    probabilities: float = 0.0


class Judge:
    """Chooses among the samples of one puzzle, which it is given in the order of their numbers.

    Args:
        choose: as in `Thinking`; `auto` where there are rules, else `q`.

    Attributes:
        best: the sample chosen so far; of equals the first.
        is_satisfied: whether no further sample can be better.
    """

    best: Sample

    def __init__(self, choose: Choose):
        self._choose = choose
        self._best_score: tuple[float, ...] = ()  # below any other
        self._answers: dict[bytes, _Answer] = {}
        self.is_satisfied = False

    def add(self, sample: Sample) -> None:
        """Consider one more sample."""
        if self._choose == "vote":
            answer = self._answers.setdefault(sample.scored.tobytes(), _Answer(sample))
            answer.votes += 1
            answer.probabilities += probability(sample.q_halt)
            sample = answer.first
            score: tuple[float, ...] = answer.votes, answer.probabilities / answer.votes
        else:
            score = self._score(sample)
        if score > self._best_score:
            self.best, self._best_score = sample, score
        self.is_satisfied = self._choose in ("rules", "auto") and self.best.verdict.is_best

    def _score(self, sample: Sample) -> tuple[float, ...]:
        """Return what the highest is chosen by."""
        if self._choose == "settled":
            movement = float(sample.outputs["movement"])
            return (-math.inf if math.isnan(movement) else -movement,)
        if self._choose == "q":
            return (sample.q_halt,)
        if sample.verdict.holds:
            return True, -sample.verdict.cost
        return False, sample.q_halt if self._choose == "auto" else 0.0


def probability(logit: float) -> float:
    """Return the sigmoid of a logit."""
    return 0.5 * (1 + math.tanh(logit / 2))
