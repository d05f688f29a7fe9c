"""A trained model that solves puzzles which no data set holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from pydantic import ValidationError

from common.errors import UserError, describe_validation_error, shown
from dataset.arc_grids import is_arc
from dataset.kinds import kind_of
from dataset.metadata import PuzzleDatasetMetadata
from dataset.notations import notation_of
from dataset.puzzle_dataset import Batch, padding_arrays
from dataset.puzzle_text import Puzzle, read_puzzles
from models.losses import ACTLossHead
from utils.arc.tasks import read_names
from utils.checkpoints.foreign_config import TrainedConfig, read_trained_config
from utils.checkpoints.puzzles import is_guessed, read_puzzles_of
from utils.checkpoints.weights import WeightsSource, find_weights, load_weights
from utils.config import ArchConfig
from utils.evaluation.evaluate import Evaluator
from utils.evaluation.judges import probability
from utils.evaluation.puzzle_view import format_puzzle
from utils.evaluation.search import Search
from utils.evaluation.slots import SlotPuzzle
from utils.evaluation.thinking import Thinking
from utils.evaluation.validity import rules_of
from utils.model import build_model

BATCH_SIZE = 64  # slots; a single puzzle gets as many as it takes samples


@dataclass(frozen=True)
class Solution:
    """A puzzle and the model's answer.

    Attributes:
        puzzle: what was given.
        preds: the answer, tokens int32 `[s]`; padding where the puzzle is padded.
        verified: whether it keeps to the rules; None where the puzzles have none.
        steps: outer steps that were taken, of all samples that counted.
        samples: the number of these samples.
        confidence: the model's own, sigmoid(Q-halt) of the answer, 0 to 1.
        film: if it was asked for, of the chosen sample the predictions `[s]`, Q-halt and whether the model would halt,
            after each step.
        metadata: of the model's puzzles.
    """

    puzzle: Puzzle
    preds: np.ndarray
    verified: bool | None
    steps: int
    samples: int
    confidence: float
    film: list[tuple[np.ndarray, float, bool]] = field(repr=False)
    metadata: PuzzleDatasetMetadata = field(repr=False)

    @property
    def text(self) -> str:
        """The answer as text, in the form in which puzzles are given."""
        return notation_of(self.metadata).text(self.preds)

    @property
    def exact(self) -> bool | None:
        """Whether it is the answer that was given with the puzzle; None where there was none."""
        return None if self.puzzle.labels is None else bool((self.preds == self.puzzle.labels).all())

    @property
    def is_solved(self) -> bool:
        """Whether nothing speaks against the answer: not the rules, else not the answer that was given."""
        return self.verified if self.verified is not None else self.exact is not False

    @property
    def verdict(self) -> str:
        """One line on the answer."""
        by_rules = {None: "no rules to verify it by", True: "verified by the rules", False: "breaks the rules"}
        parts = [by_rules[self.verified]]
        if self.exact is not None:
            parts.append("as given" if self.exact else "not the given answer")
        of_samples = f" in {self.samples} samples" if self.samples > 1 else ""
        steps = f"{self.steps} outer step{'s' if self.steps > 1 else ''}{of_samples}"
        return ", ".join([*parts, steps, f"confidence {self.confidence:.3f}"])

    def record(self) -> dict[str, Any]:
        """Return the entries of a line of JSON."""
        entries = {
            "name": self.puzzle.name,
            "puzzle": notation_of(self.metadata).text(self.puzzle.inputs),
            "answer": self.text,
            "verified": self.verified,
            "exact": self.exact,
            "steps": self.steps,
            "samples": self.samples,
            "confidence": round(self.confidence, 6),
        }
        return {name: value for name, value in entries.items() if name != "exact" or value is not None}

    def format(self, width: int = 80, coloured: bool = False) -> str:
        """Show puzzle and answer side by side, with the verdict below."""
        shown = {"inputs": self.puzzle.inputs, "preds": self.preds}
        if self.puzzle.labels is not None:
            shown["labels"] = self.puzzle.labels
        boards = format_puzzle(shown, self.metadata, width=width, coloured=coloured, verdict="")
        return f"{boards}\n{self.verdict}"

    def __str__(self) -> str:
        return self.format()


class Solver:
    """A trained model. `solve` takes Sudoku, mazes and puzzles of one's own; for ARC see `arc.ArcSolver`.

    Args:
        head: the model with its loss.
        metadata: of its puzzles.
        source: its weights.
        trained: the configuration beside them; its `arch` is the one in use.

    Attributes:
        note: a line for the user where it was guessed what puzzles the model is for, else None.
    """

    def __init__(
        self, head: ACTLossHead, metadata: PuzzleDatasetMetadata, source: WeightsSource, trained: TrainedConfig
    ):
        self.head, self.metadata, self.source, self.trained = head, metadata, source, trained
        self.note: str | None = None
        self._rules = rules_of(metadata)
        self._key: tuple[str, int, bool] | None = None

    def solve(
        self, puzzle: str, *, puzzle_name: str | None = None, seed: int = 0, film: bool = False, **thinking: Any
    ) -> Solution:
        """Solve one puzzle.

        Args:
            puzzle: as text: the cells of a Sudoku, `.` or `0` for blanks; the rows of a maze over `# SG`; or the
                symbols of a data set of one's own. See `dataset.puzzle_text.read_puzzles`.
            puzzle_name: as in `solve_all`.
            seed: of the further samples.
            film: as in `solve_all`.
            thinking: the keys of `Thinking`, such as `samples=16, relabel=True`.

        Raises:
            UserError: if the text is no puzzle, or not one, of the model's kind and size; or for a bad key.
        """
        puzzles = read_puzzles(puzzle, self.metadata, sys.stdin)
        if len(puzzles) != 1:
            raise UserError(f"{len(puzzles)} puzzles were given, expected one; solve_all takes several")
        (solution,) = self.solve_all(puzzles, thinking_of(thinking), puzzle_name=puzzle_name, seed=seed, film=film)
        return solution

    def solve_all(
        self,
        puzzles: Sequence[Puzzle],
        thinking: Thinking,
        *,
        puzzle_name: str | None = None,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        film: bool = False,
    ) -> Iterator[Solution]:
        """Solve puzzles, in their order.

        Args:
            puzzles: of `read_puzzles`.
            thinking: how far to think.
            puzzle_name: which of its data set's named puzzles they are, and so whose embedding they get; None: none.
            seed: of the further samples.
            batch_size: rows of a batch at most.
            film: keep what the chosen sample predicted after each of its steps.

        Yields:
            A solution for each.
        """
        if is_arc(self.metadata):
            raise UserError("this model works on ARC tasks; give them to solve.py, or to ArcSolver")
        if self.metadata.fields:
            raise UserError(
                f"this model needs the fields {', '.join(self.metadata.fields)} of its data set, which puzzles as text "
                "lack; use evaluate.py"
            )
        if not puzzles:
            return
        inputs = np.stack([puzzle.inputs for puzzle in puzzles])
        identifiers = np.full(len(puzzles), self._identifier(puzzle_name))
        found = self.think(inputs, identifiers, thinking, seed=seed, batch_size=batch_size, film=film)
        for puzzle, in_slots in zip(puzzles, found, strict=True):
            best = in_slots.judge.best
            yield Solution(
                puzzle,
                preds=best.scored,
                verified=None if self._rules is None else best.verdict.holds,
                steps=int(in_slots.found.row_steps),
                samples=in_slots.judged,
                confidence=probability(best.q_halt),
                film=best.film,
                metadata=self.metadata,
            )

    def _identifier(self, puzzle_name: str | None) -> int:
        """Return the puzzle identifier of a name."""
        if puzzle_name is None:
            return self.metadata.blank_identifier_id
        names = self.puzzle_names()
        if puzzle_name not in names:
            raise UserError(
                f"puzzle_name = {shown(puzzle_name)}: {self.trained.data_path} has no puzzle of that name, or is not "
                "the data set of the training; give that as data_path"
            )
        return names.index(puzzle_name)

    def puzzle_names(self) -> list[str]:
        """Read the names of the puzzles, index = identifier; none if the data set of the training is not at hand."""
        folder = Path(self.trained.data_path)
        names = read_names(folder) if (folder / "identifiers.json").is_file() else []
        return names if len(names) == self.metadata.num_puzzle_identifiers else []

    def think(
        self,
        inputs: np.ndarray,
        identifiers: np.ndarray,
        thinking: Thinking,
        *,
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        film: bool = False,
    ) -> Iterator[SlotPuzzle]:
        """Take as many samples of puzzles as they need. Their labels, if there are any, are never seen.

        Args:
            inputs: tokens `[n, s]`.
            identifiers: of the puzzles, integer `[n]`.
            thinking: how far to think.
            seed: of the further samples.
            batch_size: rows of a batch at most.
            film: as in `solve_all`.

        Yields:
            The puzzles in their order, done.
        """
        rows = min(batch_size, len(inputs) * thinking.samples)

        def batches() -> Iterator[Batch]:
            for start in range(0, len(inputs), rows):
                some = slice(start, start + rows)
                arrays, number = padding_arrays(self.metadata, rows), len(inputs[some])
                arrays["inputs"][:number] = inputs[some]
                arrays["puzzle_identifiers"][:number] = identifiers[some]
                yield Batch("puzzles", arrays, number)

        for batch in self._evaluator(thinking, seed, film).batches_in_slots(batches()):
            yield from batch.puzzles

    def _evaluator(self, thinking: Thinking, seed: int, film: bool) -> Evaluator:
        """Return the compiled step, that of the last call if it thought as far."""
        if seed < 0:
            raise UserError(f"seed is {seed}: expected 0 or more")
        key = thinking.model_dump_json(), seed, film
        if key != self._key:
            search = Search(thinking, self.metadata, seed=seed, ends_early=True, film=film)
            self._last, self._key = Evaluator(self.head, "max", search), key
        return self._last


def thinking_of(keys: dict[str, Any]) -> Thinking:
    """Check the keys of `Thinking`.

    Raises:
        UserError: one line that names the key, what was found and what is expected.
    """
    try:
        return Thinking.model_validate(keys)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "solve", known=Thinking.model_fields)) from error


def load(checkpoint: str | Path, *, data_path: str | Path | None = None, forward_dtype: str | None = None) -> Solver:
    """Load a trained model.

    Args:
        checkpoint: anything that evaluate.py takes: a step folder, a run's folder, a file, or `owner/name` on the hub.
        data_path: a data set of such puzzles, where the checkpoint doesn't record what it is for; and for ARC, the one
            that it was trained on, if it lies elsewhere.
        forward_dtype: `bfloat16`, `float16` or `float32`; None: as trained.

    Raises:
        UserError: if there is no such checkpoint, or nothing tells what puzzles it is for.
    """
    data_path = None if data_path is None else str(data_path)
    source = find_weights(str(checkpoint))
    trained = read_trained_config(source.config_folder, data_path)
    tensors = source.tensors()
    metadata = read_puzzles_of(source, tensors, trained, data_path)
    if data_path is not None:
        trained = trained.model_copy(update={"data_path": data_path})
    if forward_dtype is not None:
        arch = ArchConfig.model_validate(trained.arch.model_dump() | {"forward_dtype": forward_dtype})
        trained = trained.model_copy(update={"arch": arch})
    head = build_model(trained.arch, metadata, mx.random.key(0))
    load_weights(head, tensors, source.name, source.config_folder)
    solver = Solver(head, metadata, source, trained)
    if is_guessed(source, trained, data_path):
        solver.note = (
            f"{source.name} records no puzzles: with {metadata.vocab_size} tokens it is taken for the published "
            f"{kind_of(metadata)} model; data_path=<a data set of its puzzles> says otherwise"
        )
    return solver
