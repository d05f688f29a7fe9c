"""What the parts of a training run share, and the one place where all of it becomes a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from tqdm import tqdm

from dataset.puzzle_dataset import PuzzleDataset
from utils.checkpoint import CheckpointWriter, Snapshot
from utils.checkpoint_record import CheckpointRecord, Evaluated, Progress, current_versions
from utils.config import PretrainConfig
from utils.evaluation import Evaluator
from utils.interruption import Interruption
from utils.metrics import NonFiniteError, TrainMetrics
from utils.stored_tensors import host_tensor
from utils.tracking import Tracker
from utils.train_state import TrainState, all_finite


def is_over(config: PretrainConfig, state: TrainState, progress: Progress) -> bool:
    """Whether a run that stands there has nothing left to do."""
    all_steps = state.step >= state.total_steps and progress.evaluated == state.step
    return all_steps or progress.finished(config.epochs)


@dataclass
class Run:
    """A run under way. `state`, `progress` and `metrics` move; a checkpoint holds the three.

    `data`: fingerprints of the two splits.
    """

    config: PretrainConfig
    train_set: PuzzleDataset
    test_set: PuzzleDataset
    data: dict[str, str]
    state: TrainState
    evaluator: Evaluator
    progress: Progress
    metrics: TrainMetrics
    tracker: Tracker
    checkpoints: CheckpointWriter
    interruption: Interruption
    bar: tqdm
    _saved: Progress | None = None

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
            UserError: if the last checkpoint could not be written.
        """
        self.metrics.settle()
        if self.state.step == 0 or self.progress == self._saved:
            return
        arrays = self.state.weights(), self.state.named_arrays()
        if not all_finite(arrays).item():  # an update can overflow where loss and gradient have not
            raise NonFiniteError(f"at step {self.state.step} weights, moments or states are not finite")
        self._saved = self.progress.model_copy(deep=True)
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
