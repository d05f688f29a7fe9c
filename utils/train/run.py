"""A training run: its parts, its steps and records, and the place where all of it becomes a checkpoint."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

import mlx.core as mx
from tqdm import tqdm

from common.errors import Interrupted, UserError
from dataset.prefetch import prefetch
from dataset.puzzle_dataset import Batch, PuzzleDataset
from utils.checkpoints.puzzles import puzzles_text
from utils.checkpoints.record import CheckpointRecord, Evaluated, Progress, current_versions, step_folders
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.writer import CheckpointWriter, Snapshot
from utils.config import PretrainConfig
from utils.evaluation.evaluate import Evaluator
from utils.ranks.ranks import Ranks, checksum
from utils.tracking import Tracker
from utils.train.interruption import Interruption
from utils.train.metrics import NonFiniteError, TrainMetrics
from utils.train.state import TrainState, to_device
from utils.train.step import all_finite


@dataclass
class Run:
    """A training run. A checkpoint holds `state`, `progress` and `metrics`; the rest does not change.

    Attributes:
        ranks: this process among those of the run.
        config: the configuration.
        train_set: the training split.
        test_set: the test split.
        data: fingerprints of the two splits.
        state: model, optimiser, carry, random state and step.
        evaluator: the compiled evaluation step.
        progress: position in the data, and the evaluations so far.
        metrics: the training metrics.
        tracker: W&B and `metrics.jsonl`, on rank 0 only.
        checkpoints: the writer of checkpoints, on rank 0 only.
        interruption: the signals that have come.
        bar: the progress bar.
        iteration_complete: whether `batches` has yielded its last batch before the next evaluation.
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
    iteration_complete: bool = False
    _saved: Progress | None = None
    _signals: deque[mx.array] = field(default_factory=deque)  # of the last steps, not waited for yet

    # ------------------------------------------------------------------------------------------------ training

    def batches(self) -> Iterator[Batch]:
        """Yield the batches up to the next evaluation, or to the last step of the run, read ahead in a thread."""
        progress = self.progress
        self.iteration_complete = False
        if progress.batches and self.reason_to_stop():  # a run that was interrupted right there
            return
        plan = self.train_set.train_batches(
            progress.iteration, epochs=progress.iteration_epochs, start_batch=progress.batches
        )
        with prefetch(plan) as prepared:
            following = next(prepared, None)
            self.iteration_complete = following is None
            while following is not None and self.state.step < last_step(self.config, self.state):
                batch, following = following, next(prepared, None)
                self.iteration_complete = following is None
                yield batch

    def step(self, batch: Batch) -> None:
        """Take a training step, without waiting for it.

        Raises:
            Interrupted: if a signal has come.
            UserError: if the last checkpoint could not be written.
        """
        self.pause()
        if self.checkpoints is not None:
            self.checkpoints.check()
        result = self.state.train_step(to_device(batch), self.interruption.flag)
        mx.async_eval(self.state.arrays, self.state.carry, result)  # waits while the device is a few steps behind
        if self.ranks.size > 1:
            self._signals.append(result.signals)
        self.metrics.add(self.state.step, result.metrics, result.finite)
        self.progress.batches += 1
        self.bar.update()

    def pause(self, steps_ahead: int = 1) -> None:
        """Raise Interrupted if a signal has come, with several ranks to any of them.

        Signals of ranks are summed in each step, so that all ranks stop at the same one.

        Args:
            steps_ahead: the number of last steps whose sums are not waited for, so that the device always has work.

        Raises:
            Interrupted: if a signal has come.
        """
        if self.ranks.size == 1:
            self.interruption.check()
        while len(self._signals) > steps_ahead:
            signals = float(self._signals.popleft())
            self.ranks.moved()
            self.interruption.check_sum(signals)

    def reason_to_stop(self) -> str | None:
        """Return why to stop, by `stop_when` and the training metrics of the last steps, or None."""
        stop = self.config.stop_when
        if stop.metric is None or not self.metrics.window_counts(stop.metric):
            return None
        return stop.reason(self.metrics.over_window(), f" over {stop.window} steps")

    # ------------------------------------------------------------------------------------------------ records

    def log(self, metrics: dict[str, float]) -> None:
        """Record metrics of the current step."""
        if self.tracker is not None:
            self.tracker.log(metrics, self.state.step)

    def log_train_metrics(self) -> None:
        """Wait for the steps since the last call, and log their mean metrics and the learning rate."""
        means = self.metrics.read()
        means.pop("train/loss", None)  # a weighted sum of the losses that are logged
        means["train/lr"] = self.state.learning_rates(self.state.step)[0]
        if self.config.on_nonfinite == "skip":
            means["train/skipped_steps"] = self.metrics.skipped
        self.log(means)
        recent = self.metrics.over_window()  # in a single step few rows or none have halted, and are counted
        loss, exact = (recent.get(f"train/{name}", math.nan) for name in ("loss", "exact_accuracy"))
        self.bar.set_postfix(loss=f"{loss:.3f}", exact=f"{exact:.3f}", refresh=False)

    def over(self) -> bool:
        """Return whether there is nothing left to do."""
        return reason_to_end(self.config, self.state, self.progress) is not None

    def evaluation_is_due(self) -> bool:
        """Return whether to evaluate after this iteration: not after the first `min_eval_interval`, unless one ends."""
        progress, config = self.progress, self.config
        last = progress.epochs_done + progress.iteration_epochs >= config.epochs
        ends = last or self.state.step >= last_step(config, self.state) or self.reason_to_stop() is not None
        return ends or progress.iteration >= config.min_eval_interval

    def next_iteration(self) -> None:
        """Go on to the next iteration."""
        self.progress.next_iteration(self.config.epochs_per_iteration, self.config.epochs)

    def finish_iteration(self, metrics: dict[str, float]) -> bool:
        """Take note of the evaluation that ends an iteration, and go on to the next one.

        Args:
            metrics: what the evaluation found, by name.

        Returns:
            Whether it is the best so far.
        """
        progress, config = self.progress, self.config
        found = Evaluated(step=self.state.step, metrics=metrics)
        progress.evaluated = found.step
        best = progress.best is None or found.quality > progress.best.quality
        if best:
            progress.best = found
        progress.stopped = self.reason_to_stop() or config.stop_when.reason(metrics)
        # The rest of an incomplete one is left for a run resumed with another stop_when, max_steps or epochs
        if self.iteration_complete:
            self.next_iteration()
        return best

    def save(self) -> None:
        """Begin to write a checkpoint, in the background, unless nothing has changed since the last one.

        Raises:
            NonFiniteError: if a step since the last `settle` was not finite, or an array to be saved is not.
            UserError: if the last checkpoint could not be written, or weights and moments differ between ranks.
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
        self.checkpoints.save(Snapshot(weights, training, record, puzzles_text(self.test_set.metadata)))

    @contextlib.contextmanager
    def ending_in_order(self) -> Iterator[None]:
        """Save a checkpoint when the block is interrupted; explain when a step was not finite.

        Raises:
            UserError: in place of NonFiniteError, with what to do.
        """
        try:
            try:
                yield
            except Interrupted:
                self.ranks.rest()
                self.save()
                if self.checkpoints is not None:
                    self.checkpoints.wait()
                raise
        except NonFiniteError as error:
            if self.checkpoints is None:  # rank 0 has found the same, and prints it
                raise SystemExit(1) from error
            self.checkpoints.wait()
            steps = step_folders(self.checkpoints.path)
            kept = f"{steps[0].name} is the last good checkpoint" if steps else "there is no checkpoint yet"
            again = "continue with resume=auto and" if steps else "start anew with"
            raise UserError(
                f"{error}; training is stopped, and {kept}; late in training on few examples this happens: stop "
                f"earlier (stop_when.metric=train/exact_accuracy stop_when.at_least=0.999), or {again} a lower lr"
                + ("" if self.config.on_nonfinite == "skip" else " or on_nonfinite=skip")
            ) from error


def reason_to_end(config: PretrainConfig, state: TrainState, progress: Progress) -> str | None:
    """Return why a run with this state and progress has nothing left to do, or None."""
    is_evaluated = progress.evaluated == state.step
    if progress.finished(config.epochs) or (is_evaluated and state.step >= state.total_steps):
        return progress.stopped or f"all {config.epochs} epochs are done"
    if is_evaluated and state.step >= last_step(config, state):
        return f"max_steps = {config.max_steps} is reached"
    return None


def last_step(config: PretrainConfig, state: TrainState) -> int:
    """Return the step that a run takes no step beyond: the schedule's last, or `max_steps`."""
    return min(state.total_steps, config.max_steps or state.total_steps)


def planned_end(
    config: PretrainConfig, state: TrainState, progress: Progress, train_set: PuzzleDataset
) -> tuple[int, bool]:
    """Compute the step at which a run from this state and progress ends, unless it stops early.

    Returns:
        The step, and whether it is exact: data whose puzzles have different numbers of examples may end before it.
    """
    last, ahead = last_step(config, state), progress.model_copy()
    batches_of = functools.cache(train_set.num_batches)
    end = state.step - ahead.batches
    while end < last and not ahead.finished(config.epochs):
        batches = batches_of(ahead.iteration_epochs)
        if batches is None:
            return last, False
        end += batches
        ahead.next_iteration(config.epochs_per_iteration, config.epochs)
    return max(min(end, last), state.step), True
