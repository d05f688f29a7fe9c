"""ARC tasks with a trained model: copies of a task are answered, mapped back, and vote.

What a model knows of a task's rule is in its puzzle embeddings, one for each copy of the task. A task that it was not
trained on has none. `adapt_steps` trains some on the task's demonstrations; without, each is the mean of all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np
from pydantic import BaseModel, Field

from common import IGNORE_LABEL_ID
from common.errors import UserError
from common.progress import progress_bar
from dataset.arc_augmentations import augmented_tokens, draw_augmentations
from dataset.arc_grids import PAD, SEQ_LEN, VOCAB_SIZE, parse_augmentation_name
from dataset.arc_tasks import Task
from dataset.metadata import PuzzleDatasetMetadata
from models.losses import ACTLossHead
from utils.arc.predictions import restored_grids
from utils.arc.scoring import TaskScore, count_votes, score_input
from utils.checkpoints.weights import load_weights
from utils.config import PretrainConfig
from utils.evaluation.thinking import Thinking
from utils.model import build_model
from utils.solving.solver import BATCH_SIZE, Solver
from utils.train.state import TrainState

_ADAPT_BATCH = 32


class Adaptation(BaseModel):
    """The keys for ARC tasks that a model was not trained on."""

    adapt_steps: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="ARC: training steps on the demonstrations of a task that the model doesn't know",
    )
    adapt: Literal["emb", "all"] = Field(
        default="emb", description="what they train: emb, the task's puzzle embeddings; all, the weights as well"
    )
    adapt_lr: float = Field(default=1e-4, ge=0, allow_inf_nan=False, description="learning rate of the weights there")
    adapt_emb_lr: float = Field(default=1e-2, ge=0, allow_inf_nan=False, description="of the puzzle embeddings there")
    copies: int = Field(default=32, ge=0, le=10_000, description="ARC: augmented copies of a task that vote beside it")


@dataclass(frozen=True)
class _Copies:
    """A task's copies, of which the first is the task itself.

    Attributes:
        transforms: integer `[n]`.
        colours: uint8 `[n, 10]`.
        identifiers: of their puzzle embeddings, integer `[n]`.
    """

    transforms: np.ndarray
    colours: np.ndarray
    identifiers: np.ndarray


class ArcSolver:
    """A trained model for ARC tasks.

    Args:
        solver: the model.
        adaptation: what to do about tasks that it doesn't know.

    Raises:
        UserError: if its puzzles have other sizes than those of ARC, or it lacks what `adaptation` is to train.
    """

    def __init__(self, solver: Solver, adaptation: Adaptation):
        sizes = solver.metadata.seq_len, solver.metadata.vocab_size
        if sizes != (SEQ_LEN, VOCAB_SIZE):
            raise UserError(
                f"this model's ARC tasks have seq_len = {sizes[0]} and vocab_size = {sizes[1]}, expected {SEQ_LEN} and "
                f"{VOCAB_SIZE}"
            )
        self.solver, self.adaptation = solver, adaptation
        has_embeddings = solver.head.model.puzzle_emb is not None
        if not has_embeddings and adaptation.adapt_steps and adaptation.adapt == "emb":
            raise UserError("adapt = 'emb' trains puzzle embeddings, and this model has none; use adapt=all")
        self._names = solver.puzzle_names() if has_embeddings else []
        self._identifiers: dict[str, list[int]] = {}
        for identifier, name in enumerate(self._names):
            self._identifiers.setdefault(parse_augmentation_name(name)[0], []).append(identifier)
        self._without_rule: Solver | None = None

    def knows(self, task: Task) -> bool:
        """Return whether the model was trained on the task's demonstrations, going by its name."""
        return task.task_id in self._identifiers

    def solve_all(
        self, tasks: Sequence[Task], thinking: Thinking, *, seed: int = 0, batch_size: int = BATCH_SIZE
    ) -> Iterator[TaskScore]:
        """Let the copies of each task vote.

        Args:
            tasks: whose test pairs may lack their output.
            thinking: how far to think about each copy.
            seed: of the copies, of the training and of the further samples.
            batch_size: rows of a batch at most.

        Yields:
            For each task the candidates for its test inputs, best first.
        """
        for task in tasks:
            copies = self._copies(task, seed)
            solver = self.solver if self.knows(task) else self._solver_for(task, copies, seed)
            inputs, _ = augmented_tokens(task.test, copies.transforms, copies.colours, None)
            identifiers = np.repeat(copies.identifiers, len(task.test))
            found = [
                in_slots.judge.best
                for in_slots in solver.think(inputs, identifiers, thinking, seed=seed, batch_size=batch_size)
            ]
            answers = []
            for number, pair in enumerate(task.test):
                of_input = found[number :: len(task.test)]
                preds = np.stack([sample.preds for sample in of_input])
                q_halt = np.array([sample.q_halt for sample in of_input])
                votes = count_votes(restored_grids(preds, copies.transforms, copies.colours), q_halt)
                answers.append(score_input(pair, votes))
            yield TaskScore(task, answers)

    def _copies(self, task: Task, seed: int) -> _Copies:
        """Return the copies that the model knows, or draw some of a task that it doesn't."""
        limit = 1 + self.adaptation.copies
        if self.knows(task):
            known = self._identifiers[task.task_id][:limit]
            _, transforms, colours = zip(
                *(parse_augmentation_name(self._names[identifier]) for identifier in known), strict=True
            )
            return _Copies(np.array(transforms), np.stack(colours), np.array(known))
        rng = np.random.default_rng([seed, *task.task_id.encode()])
        transforms, colours = draw_augmentations(task.train, self.adaptation.copies, rng)
        return _Copies(transforms, colours, np.arange(1, 1 + len(transforms)))

    def _solver_for(self, task: Task, copies: _Copies, seed: int) -> Solver:
        """Return a model with puzzle embeddings for the copies of a task that it doesn't know."""
        if self.adaptation.adapt_steps:
            return self._with_head(self._adapted(task, copies, seed))
        if self._without_rule is None:
            head = build_model(self.solver.trained.arch, self._sizes(), mx.random.key(0))
            self._load(head)
            self._without_rule = self._with_head(head)
        return self._without_rule

    def _adapted(self, task: Task, copies: _Copies, seed: int) -> ACTLossHead:
        """Train puzzle embeddings, and perhaps the weights, on the demonstrations of a task."""
        keys = self.adaptation
        rng = np.random.default_rng([seed, 1, *task.task_id.encode()])
        inputs, labels = augmented_tokens(task.train, copies.transforms, copies.colours, rng)
        identifiers = np.repeat(copies.identifiers, len(task.train))
        config = PretrainConfig(
            arch=self.solver.trained.arch,
            data_path=self.solver.trained.data_path,
            global_batch_size=min(_ADAPT_BATCH, len(inputs)),
            epochs=1,
            lr=keys.adapt_lr,
            lr_min_ratio=1.0,
            lr_warmup_steps=0,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            puzzle_emb_lr=keys.adapt_emb_lr,
            puzzle_emb_weight_decay=0.1,
            freeze_weights=keys.adapt == "emb",
            seed=seed,
        )
        state = TrainState(config, self._sizes(), total_steps=keys.adapt_steps)
        self._load(state.head)
        bar = progress_bar(total=keys.adapt_steps, desc="adapt", unit="step", leave=False)
        for _ in range(keys.adapt_steps):
            rows = rng.choice(len(inputs), config.global_batch_size, replace=False)
            batch = {
                "inputs": inputs[rows].astype(np.int32),
                "labels": np.where(labels[rows] == PAD, IGNORE_LABEL_ID, labels[rows].astype(np.int32)),
                "puzzle_identifiers": identifiers[rows].astype(np.int32),
            }
            state.train_step({name: mx.array(array) for name, array in batch.items()})
            mx.eval(state.arrays, state.carry)
            bar.update()
        bar.close()
        return state.head

    def _sizes(self) -> PuzzleDatasetMetadata:
        """Return the metadata of a model with a puzzle embedding for each copy of one task."""
        return self.solver.metadata.model_copy(update={"num_puzzle_identifiers": 2 + self.adaptation.copies})

    def _load(self, head: ACTLossHead) -> None:
        """Load the weights, and the mean of all puzzle embeddings into each."""
        source = self.solver.source
        emb: Literal["mean", "exact"] = "exact" if head.model.puzzle_emb is None else "mean"
        load_weights(head, source.tensors(), source.name, source.config_folder, emb)

    def _with_head(self, head: ACTLossHead) -> Solver:
        return Solver(head, self.solver.metadata, self.solver.source, self.solver.trained)
