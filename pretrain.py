"""Train the Hierarchical Reasoning Model: python pretrain.py key=value …

A run is config → data → state → (train → evaluate → checkpoint)*. All keys are in config/cfg_pretrain.yaml.
"""

from __future__ import annotations

import utils.linux_cpu  # before mlx: on Linux it brings a fast BLAS

import math
import os
import re
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from common.errors import Interrupted, UserError, one_line
from dataset.puzzle_dataset import PuzzleDataset, prefetch
from utils.checkpoints.record import TRAINING_FILE, WEIGHTS_FILE, Progress, step_folders
from utils.checkpoints.resume import (
    ResumePoint,
    check_same_run,
    find_resume_point,
    make_way,
    progress_from,
    with_saved_names,
)
from utils.checkpoints.run_folder import RunFolder
from utils.checkpoints.safetensors_file import read_safetensors
from utils.checkpoints.weights import find_weights, load_weights, share_weights
from utils.checkpoints.writer import CheckpointWriter
from utils.config import PretrainConfig, hydra_errors, parse_pretrain_config, with_names, write_saved_config
from utils.evaluation.evaluate import Evaluation, Evaluator, evaluate, metric_names
from utils.evaluation.predictions import PredictionWriter, predictions_folder, remove_surplus
from utils.ranks.ranks import Ranks, checksum, connected
from utils.tracking import Tracker
from utils.train.history import History
from utils.train.interruption import Interruption
from utils.train.metrics import TRAIN_METRICS, NonFiniteError, TrainMetrics, check_metric
from utils.train.run import Run, is_over
from utils.train.state import TrainState, count_parameters, to_device, with_forward_dtype


def load_data(config: PretrainConfig, ranks: Ranks) -> tuple[PuzzleDataset, PuzzleDataset]:
    """Open both splits and check that they belong together and that there is something to train on."""
    train_set, test_set = (
        PuzzleDataset(
            config.data_path,
            split,
            global_batch_size=config.global_batch_size,
            seed=config.seed,
            rank=ranks.rank,
            num_ranks=ranks.size,
        )
        for split in ("train", "test")
    )
    for name in ("seq_len", "vocab_size", "num_puzzle_identifiers"):
        ours, theirs = getattr(train_set.metadata, name), getattr(test_set.metadata, name)
        if ours != theirs:
            raise UserError(f"{config.data_path}: {name} is {ours} in train and {theirs} in test; build it anew")
    train_set.train_batches(0, epochs=config.epochs_per_iteration)  # raises if it has no batch at all
    return train_set, test_set


def steps_of_run(config: PretrainConfig, train_set: PuzzleDataset) -> int:
    """Number of steps after which the learning rate schedule, and the run, ends."""
    meta = train_set.metadata
    return int(config.epochs * meta.total_groups * meta.mean_puzzle_examples / config.global_batch_size)


def log_train_metrics(run: Run) -> None:
    """Wait for the steps since the last call, and log their mean metrics and the learning rate."""
    means = run.metrics.read()
    means.pop("train/loss", None)  # a weighted sum of the three losses that are logged
    means["train/lr"] = run.state.learning_rates(run.state.step)[0]
    if run.config.on_nonfinite == "skip":
        means["train/skipped_steps"] = run.metrics.skipped
    run.log(means)


def reason_to_stop(run: Run) -> str | None:
    """What `stop_when` says to the training metrics of the last steps: the reason to stop, if there is one."""
    stop = run.config.stop_when
    if stop.metric is None or not run.metrics.window_counts(stop.metric):
        return None
    return stop.reason(run.metrics.over_window(), f" over {stop.window} steps")


def train(run: Run) -> tuple[bool, str | None]:
    """Train up to the next evaluation.

    Returns whether the iteration is complete, and why `stop_when` asks to end the run, if it does.
    """
    config, state, progress = run.config, run.state, run.progress
    if progress.batches and (stop := reason_to_stop(run)):  # a run that was interrupted right there
        return False, stop
    batches = run.train_set.train_batches(
        progress.iteration, epochs=progress.iteration_epochs, start_batch=progress.batches
    )
    with prefetch(batches) as prepared:
        for batch in prepared:
            run.pause()
            if run.checkpoints is not None:
                run.checkpoints.check()
            if state.step >= state.total_steps:
                return False, None
            run.step(to_device(batch))
            progress.batches += 1
            run.bar.update()

            stop = None
            if state.step % config.log_interval == 0:
                log_train_metrics(run)
                recent = run.metrics.over_window()  # of one step's rows few have halted, and so been counted, or none
                loss, exact = (recent.get(f"train/{name}", math.nan) for name in ("loss", "exact_accuracy"))
                run.bar.set_postfix(loss=f"{loss:.3f}", exact=f"{exact:.3f}", refresh=False)
                stop = reason_to_stop(run)
            if config.checkpoint_interval is not None and state.step % config.checkpoint_interval == 0:
                run.save()
            if stop:
                return next(prepared, None) is None, stop
    return True, None


def evaluate_and_log(run: Run) -> Evaluation:
    """Evaluate the test split, write what `eval_save_outputs` names, and log metrics and pictures."""
    config, step, ranks = run.config, run.state.step, run.ranks
    vocab_size = run.test_set.metadata.vocab_size
    path = Path(str(config.checkpoint_path))
    folder = predictions_folder(path, step, ranks.rank)
    with ExitStack() as stack:
        writer = None
        if config.eval_save_outputs:
            writer = stack.enter_context(PredictionWriter(folder, config.eval_save_outputs, vocab_size))
        result = evaluate(
            run.evaluator,
            run.test_set,
            max_examples=config.eval_max_examples,
            writer=writer,
            num_samples=config.log_examples,
            after_step=run.interruption.check,
            ranks=ranks,
        )
    if config.eval_save_outputs and ranks.first:
        remove_surplus(path, step, ranks.size)
    run.log(result.metrics)
    if run.tracker is not None:
        run.tracker.log_examples(result.samples, vocab_size, step)
    tqdm.write(f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    return result


def go_on(run: Run) -> None:
    """(train → evaluate → checkpoint)*, from where the run stands to its end."""
    config, progress = run.config, run.progress
    while not run.over():
        complete, stopped = train(run)
        run.pause(steps_ahead=0)
        found = evaluate_and_log(run).metrics
        best = run.note_evaluation(found)
        progress.stopped = stopped or config.stop_when.reason(found)
        if complete:  # otherwise its rest is left for whoever resumes with another stop_when, or with more epochs
            progress.next_iteration(config.epochs_per_iteration, config.epochs)
        last = run.over()
        if last and run.metrics.unread:  # steps after the last multiple of log_interval
            log_train_metrics(run)
        if config.checkpoint_every_eval or last or (best and config.keep_checkpoints is not None):
            run.save()
        if progress.stopped is not None:
            tqdm.write(f"step {run.state.step}: {progress.stopped}, stopping")


def end_in_order(run: Run) -> None:
    """`go_on`, and when that is cut short, what the user then needs: a checkpoint, or advice."""
    try:
        try:
            go_on(run)
        except Interrupted:
            run.save()
            run.ranks.rest()
            if run.checkpoints is not None:
                run.checkpoints.wait()
            raise
    except NonFiniteError as error:
        if run.checkpoints is None:  # rank 0, which has found the same, says so
            raise SystemExit(1) from error
        run.checkpoints.wait()
        steps = step_folders(run.checkpoints.path)
        kept = f"{steps[0].name} is the last good checkpoint" if steps else "there is no checkpoint yet"
        skipping = run.config.on_nonfinite == "skip"
        again = "continue with resume=auto and" if steps else "start anew with"
        raise UserError(
            f"{error}; training is stopped, and {kept}. Late in training on few examples this happens: stop earlier "
            f"(stop_when.metric=train/exact_accuracy stop_when.at_least=0.999), or {again} a lower lr"
            + ("" if skipping else " or on_nonfinite=skip")
        ) from error


def restore(state: TrainState, metrics: TrainMetrics, point: ResumePoint) -> None:
    """Put the arrays and sums of a checkpoint in place. Only rank 0 reads it; the others get the arrays."""
    if state.ranks.first:
        load_weights(state.head, read_safetensors(point.folder / WEIGHTS_FILE), str(point.folder))
    share_weights(state.head, state.ranks)
    arrays = read_safetensors(point.folder / TRAINING_FILE) if state.ranks.first else {}
    state.restore(point.record.step, arrays, str(point.folder))
    metrics.restore(point.record.train_metrics)


def start_from(checkpoint: str, state: TrainState) -> None:
    """Put the weights that `load_weights` names in place of the random ones."""
    if state.ranks.first:
        source = find_weights(checkpoint)
        load_weights(state.head, source.tensors(), source.name)
    share_weights(state.head, state.ranks)


def launch(hydra_config: DictConfig, ranks: Ranks) -> None:
    """A whole run, or the rest of one. Rank 0 reads and writes the run's folder; the others compute with it."""
    config = ranks.from_first(
        lambda: with_forward_dtype(with_names(with_saved_names(parse_pretrain_config(hydra_config)))), PretrainConfig
    )
    if ranks.watchdog is not None:
        ranks.watchdog.timeout = config.rank_timeout
    path = Path(str(config.checkpoint_path))
    with RunFolder(path) as folder:
        if ranks.first and config.resume is not None and path.is_dir():
            folder.claim()
        point = ranks.from_first(lambda: find_resume_point(config), ResumePoint | None)

        train_set, test_set = load_data(config, ranks)
        check_metric(config.stop_when.metric, [*TRAIN_METRICS, *metric_names(test_set)])
        data = {"train": train_set.fingerprint(), "test": test_set.fingerprint()}
        ranks.require_same("the data sets", data)
        changes = [] if point is None else check_same_run(config, data, point)

        state = TrainState(config, train_set.metadata, total_steps=steps_of_run(config, train_set), ranks=ranks)
        metrics = TrainMetrics(config.global_batch_size, config.stop_when.window, skip=config.on_nonfinite == "skip")
        progress = Progress(iteration_epochs=config.epochs_per_iteration)
        if point is not None:
            restore(state, metrics, point)
            progress = progress_from(point, config)
        elif config.load_weights is not None:
            start_from(config.load_weights, state)
        if ranks.size > 1:
            ranks.require_same("the initial weights and random state", checksum(state.arrays))

        parameters = count_parameters(state.head)
        if ranks.first:
            folder.claim()
            if point is None:
                folder.refuse_earlier_steps()
            write_saved_config(config, path)
            folder.save_code()
        together = f", {ranks.size} ranks" if ranks.size > 1 else ""
        blas = utils.linux_cpu.blas_name
        tqdm.write(f"{parameters:,} parameters, {state.total_steps:,} steps, BLAS {blas}{together}, {path}")
        if config.resume is not None:
            tqdm.write(f"no checkpoint in {path} yet, starting anew" if point is None else f"resuming {point.folder}")
        for change in changes:
            tqdm.write(f"changed since then: {change}")
        if is_over(config, state, progress):
            tqdm.write(f"nothing left to do: {progress.stopped or f'all {config.epochs} epochs are done'}")
            return
        if point is not None and ranks.first:
            make_way(point)

        with (
            Interruption(speaks=ranks.first) as interruption,
            ExitStack() as records,
            tqdm(
                total=state.total_steps,
                initial=state.step,
                disable=not ranks.first,
                desc="train",
                unit="step",
                dynamic_ncols=True,
            ) as bar,
        ):
            tracker, checkpoints = (
                open_records(config, path, point, state.step, records) if ranks.first else (None, None)
            )
            if tracker is not None and checkpoints is not None:
                if point is None:
                    tracker.log({"num_params": parameters}, 0)
                tracker.log_code(path)
                if ranks.watchdog is not None:
                    ranks.watchdog.before_exit = checkpoints.finish
            run = Run(
                ranks=ranks,
                config=config,
                train_set=train_set,
                test_set=test_set,
                data=data,
                state=state,
                evaluator=Evaluator(state.head, config.eval_halt),
                progress=progress,
                metrics=metrics,
                tracker=tracker,
                checkpoints=checkpoints,
                interruption=interruption,
                bar=bar,
            )
            end_in_order(run)
            ranks.rest()  # closing W&B may take longer than a step


def open_records(
    config: PretrainConfig, path: Path, point: ResumePoint | None, step: int, stack: ExitStack
) -> tuple[Tracker, CheckpointWriter]:
    """Open what a run is recorded in, until `stack` closes it: metrics, W&B and checkpoints."""
    history_bytes, run_id = (0, None) if point is None else (point.record.history_bytes, point.record.wandb_run_id)
    history = stack.enter_context(History(path, history_bytes))
    tracker = stack.enter_context(Tracker(config, run_id, history, step=step))
    return tracker, stack.enter_context(CheckpointWriter(path, config.keep_checkpoints))


def compose() -> list[tuple[DictConfig, str]]:
    """What Hydra makes of the command line: a configuration and its working directory, several with --multirun, or none
    with --help."""
    composed: list[tuple[DictConfig, str]] = []

    @hydra.main(
        config_path=str(Path(__file__).resolve().parent / "config"), config_name="cfg_pretrain", version_base=None
    )
    def take(config: DictConfig) -> None:
        with suppress(OmegaConfBaseException):  # whoever reads the value tells; here Hydra would add a line of its own
            OmegaConf.resolve(config)  # ${hydra:…} has a value here only
        composed.append((config, os.getcwd()))

    take()
    return composed


@one_line
def main() -> None:
    """The command line. With the PyTorch code, keys that its YAML lacks are given as `+key=value`; here the YAML has
    all keys, and Hydra wants `++` where a key exists already."""
    sys.argv[1:] = [re.sub(r"^\+(?=[^+])", "++", argument) for argument in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises, rather than print half a page and exit
    with connected() as ranks:
        with hydra_errors():
            composed = compose()
        for config, directory in composed:
            os.chdir(directory)  # elsewhere with hydra.job.chdir=True
            launch(config, ranks)


if __name__ == "__main__":
    main()
