"""What the parts of a training run share, and the one place where all of it becomes a checkpoint."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone

import mlx.core as mx
from tqdm import tqdm

from dataset.puzzle_dataset import PuzzleDataset
from utils.checkpoints.record import CheckpointRecord, Evaluated, Progress, current_versions
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.writer import CheckpointWriter, Snapshot
from utils.config import PretrainConfig
from utils.evaluation.evaluate import Evaluator
from utils.ranks.ranks import Ranks, checksum
from utils.tracking import Tracker
from utils.train.interruption import Interruption
from utils.train.metrics import NonFiniteError, TrainMetrics
from utils.train.state import TrainState, all_finite


def is_over(config: PretrainConfig, state: TrainState, progress: Progress) -> bool:
    """Whether a run that stands there has nothing left to do."""
    all_steps = state.step >= state.total_steps and progress.evaluated == state.step
    return all_steps or progress.finished(config.epochs)


@dataclass
class Run:
    """A run under way. `state`, `progress` and `metrics` move; a checkpoint holds the three.

    `data`: fingerprints of the two splits. `tracker` and `checkpoints`: on rank 0 only.
    """

    ranks: Ranks
    config: PretrainConfig
    train_set: PuzzleDataset
    test_set: PuzzleDataset
    data: dict[str, str]
    state: TrainState
    evaluator: Evaluator
    progress: Progress
    metrics: TrainMetrics
    tracker: Tracker | None
    checkpoints: CheckpointWriter | None
    interruption: Interruption
    bar: tqdm
    _saved: Progress | None = None
    _flags: deque[mx.array] = field(default_factory=deque)  # of the last steps, not looked at yet

    def log(self, metrics: dict[str, float]) -> None:
        """Record metrics of the current step."""
        if self.tracker is not None:
            self.tracker.log(metrics, self.state.step)

    def step(self, batch: dict[str, mx.array]) -> None:
        """Take a training step, without waiting for it."""
        metrics, _ = self.state.train_step(batch, self.interruption.flag)
        mx.async_eval(self.state.arrays, self.state.carry, metrics)
        if "flags" in metrics:
            self._flags.append(metrics.pop("flags"))
        self.metrics.add(self.state.step, metrics)

    def pause(self, steps_ahead: int = 1) -> None:
        """Between two steps: raise Interrupted if a signal has come.

        With several ranks, to any of them: what counts is what they have told one another in a step, all but the last
        `steps_ahead` of which are waited for. So all ranks stop at the same step, and their devices never run dry.
        """
        if self.ranks.size == 1:
            self.interruption.check()
        while len(self._flags) > steps_ahead:
            flags = float(self._flags.popleft())
            self.ranks.moved()
            self.interruption.check_sum(flags)

    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return is_over(self.config, self.state, self.progress)

    def note_evaluation(self, metrics: dict[str, float]) -> bool:
        """Remember an evaluation of the current step; returns whether it is the best so far."""
        found = Evaluated(step=self.state.step, metrics=metrics)
        self.progress.evaluated = found.step
        better = self.progress.best is None or found.rank > self.progress.best.rank
        if better:
            self.progress.best = found
        return better

    def save(self) -> None:
        """Have a checkpoint of this moment written in the background, unless it would be the one that was last.

        Raises:
            NonFiniteError: if a step since the last look was not finite, or what would be saved is not.
            UserError: if the last checkpoint could not be written, or the ranks have drifted apart.
        """
        self.metrics.settle()
        if self.state.step == 0 or self.progress == self._saved:
            return
        arrays = self.state.weights(), self.state.named_arrays()
        finite = self.ranks.gather(bool(all_finite(arrays).item()))
        if not all(finite):  # an update can overflow where loss and gradient have not
            raise NonFiniteError(f"at step {self.state.step} weights, moments or states are not finite")
        self._saved = self.progress.model_copy(deep=True)
        if self.ranks.size > 1:
            self.ranks.require_same(f"the weights at step {self.state.step}", checksum(self.state.arrays))
        self.ranks.moved()
        if self.tracker is None or self.checkpoints is None:
            return
        record = CheckpointRecord(
            step=self.state.step,
            saved_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            config=self.config.model_dump(),
            data=self.data,
            progress=self._saved,
            train_metrics=self.metrics.record(),
            history_bytes=self.tracker.history.synced_length(),
            wandb_run_id=self.tracker.run_id,
            versions=current_versions(),
        )
        weights, training = ({name: host_tensor(array) for name, array in group.items()} for group in arrays)
        self.checkpoints.save(Snapshot(weights, training, record))
