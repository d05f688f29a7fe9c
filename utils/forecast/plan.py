"""What a run will do, if nothing ends it early: steps, evaluations, checkpoints."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from dataset.puzzle_dataset import PuzzleDataset
from utils.checkpoints.record import Progress
from utils.config import PretrainConfig


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        steps: of training.
        is_exact: False where puzzles have different numbers of examples: the run may end a little earlier.
        evaluations: of the test split.
        kept: checkpoints that stay, at most.
    """

    steps: int
    is_exact: bool
    evaluations: int
    kept: int


def plan_of(config: PretrainConfig, total_steps: int, train_set: PuzzleDataset) -> Plan:
    """Plan a run from its first step to its end, without `stop_when` and interruptions.

    Args:
        config: the training configuration.
        total_steps: of the learning rate schedule.
        train_set: the training split.
    """
    last = min(total_steps, config.max_steps or total_steps)
    progress = Progress(iteration_epochs=config.epochs_per_iteration)
    batches_of = functools.cache(train_set.num_batches)
    step, is_exact, evaluated = 0, True, []
    while step < last and not progress.finished(config.epochs):
        batches = batches_of(progress.iteration_epochs)
        is_exact = is_exact and batches is not None
        if batches is None:
            batches = round(total_steps * progress.iteration_epochs / config.epochs)
        step = min(step + batches, last)
        ends = step >= last or progress.epochs_done + progress.iteration_epochs >= config.epochs
        if ends or progress.iteration >= config.min_eval_interval:
            evaluated.append(step)
        progress.next_iteration(config.epochs_per_iteration, config.epochs)
    saved = set(evaluated if config.checkpoint_every_eval else evaluated[-1:])
    if config.checkpoint_interval is not None:
        saved |= set(range(config.checkpoint_interval, step + 1, config.checkpoint_interval))
    kept = len(saved)
    if config.keep_checkpoints is not None:
        kept = min(kept, config.keep_checkpoints + 1)  # and the best one
    return Plan(step, is_exact, len(evaluated), kept)
