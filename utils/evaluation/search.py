"""How far to think about each puzzle, made ready for a data set: its rules, its symmetries, what samples draw."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from common.errors import UserError
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import Batch
from dataset.relabelling import Relabelling, relabeller
from dataset.scored import scored_part
from models.variation import SAMPLE_KEY
from utils.evaluation.curve import Curve, Found
from utils.evaluation.judges import Judge, Verdict
from utils.evaluation.thinking import Choose, Thinking
from utils.evaluation.validity import Rules, rules_of


class Search:
    """What an evaluation needs to take samples of puzzles and to choose among them.

    Args:
        thinking: how far to think.
        metadata: of the split; None, for a search that takes only plain samples.
        seed: of all samples. What a sample draws depends on it, on the puzzle's inputs and the sample's number alone.
        ends_early: let a row end as soon as its answer is verified even if its sample is the only one.
        film: keep what each sample predicted after each of its steps.
        keep_samples: return the arrays of all samples, not of the chosen ones alone.
        prefix: before the names of the keys, for messages.

    Attributes:
        rules: of the puzzles; None if there are none, or nothing asks for them.
        leaves_early: whether a row ends as soon as its answer is verified, and with it the puzzle's other samples.
        is_plain: whether nothing is done that an evaluation without it would not do.
        needs_movement: whether the movement of the logits has to be measured.
        curve: of the evaluation, or the last one.

    Raises:
        UserError: if the puzzles have no rules or symmetries, and these are asked for.
    """

    def __init__(
        self,
        thinking: Thinking,
        metadata: PuzzleDatasetMetadata | None,
        *,
        seed: int = 0,
        ends_early: bool = False,
        film: bool = False,
        keep_samples: bool = False,
        prefix: str = "",
    ):
        self.thinking, self.film, self.keep_samples = thinking, film, keep_samples
        self._seed = seed
        self.is_plain = thinking.is_plain and not (ends_early or film or keep_samples)
        self._metadata = metadata
        rules = None if metadata is None else rules_of(metadata)
        if thinking.choose == "rules" and rules is None:
            raise UserError(
                f"{prefix}choose = 'rules' needs puzzles whose answers can be verified, Sudoku or mazes, and these are "
                f"others; use {prefix}choose=q"
            )
        self.rules: Rules | None = None if self.is_plain else rules
        self._choose: Choose = "q" if thinking.choose == "auto" and self.rules is None else thinking.choose
        self._draw: Callable[[np.random.Generator, np.ndarray], Relabelling] | None = None
        if thinking.relabel and metadata is not None:
            if metadata.fields:
                raise UserError(
                    f"{prefix}relabel can't tell how a symmetry changes the data set's fields "
                    f"{', '.join(metadata.fields)}; leave it out"
                )
            try:
                self._draw = relabeller(metadata)
            except UserError as error:
                raise UserError(f"{prefix}relabel: {error}") from error
        ends_early = ends_early or not thinking.is_plain
        self.leaves_early = ends_early and self._choose in ("auto", "rules") and self.rules is not None
        self.needs_movement = self._choose == "settled" or keep_samples
        self.forget()

    def forget(self) -> None:
        """Begin a new curve."""
        self.curve = Curve(self.rules is not None, np.zeros((self.thinking.samples, len(Found._fields))))

    def judge(self) -> Judge:
        """Return a judge for a puzzle."""
        return Judge(self._choose)

    def sample(self, batch: Batch, row: int, number: int) -> tuple[dict[str, np.ndarray], Relabelling | None]:
        """Make a sample of a puzzle.

        Args:
            batch: of the data set.
            row: of the puzzle.
            number: of the sample; 0 is the puzzle as it is.

        Returns:
            The arrays of the row, with SAMPLE_KEY; and how it was relabelled, or None.
        """
        arrays: dict[str, np.ndarray] = {name: array[row] for name, array in batch.arrays.items()}
        key, relabelling = np.zeros(2, np.uint32), None
        if number:
            inputs = arrays["inputs"]
            puzzle = hashlib.blake2b(inputs.astype("<i4").tobytes(), digest_size=8).digest()
            rng = np.random.default_rng([self._seed, int.from_bytes(puzzle, "little"), number])
            key = rng.integers(1 << 32, size=2, dtype=np.uint32)
            if self._draw is not None:
                relabelling = self._draw(rng, inputs)
                arrays |= {name: relabelling.apply(arrays[name]) for name in ("inputs", "labels")}
        return arrays | {SAMPLE_KEY: key}, relabelling

    def scored(self, inputs: np.ndarray, preds: np.ndarray) -> np.ndarray:
        """Return an answer without what no label ever scores: around an ARC grid, and where the puzzle is padded.

        Args:
            inputs: tokens of the puzzle, `[s]`.
            preds: tokens int32 `[s]`.
        """
        if self._metadata is None:
            return preds
        return scored_part(self._metadata, inputs, preds)

    def verdicts(self, inputs: np.ndarray, preds: np.ndarray) -> list[Verdict]:
        """Compute what the rules say of answers; a symmetry of the puzzle changes none of it.

        Args:
            inputs: tokens `[n, s]`.
            preds: tokens `[n, s]`.
        """
        if self.rules is None:
            return [Verdict()] * len(preds)
        found = (check(inputs, preds).tolist() for check in (self.rules.holds, self.rules.is_best))
        return [Verdict(*values) for values in zip(*found, self.rules.cost(preds).tolist(), strict=True)]
